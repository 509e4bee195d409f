// What this browser remembers: conversations and settings. The API key is not among them.

const CHATS = "pocketgem.chats", SETTINGS = "pocketgem.settings";
const MOST_CHATS = 100;

export const settings = { theme: "", thinking: "off", system: "", ...read(SETTINGS, {}) };
export const chats = read(CHATS, []).filter((chat) => Array.isArray(chat.turns));

function read(name, usual) {
  try { return JSON.parse(localStorage.getItem(name)) ?? usual; } catch { return usual; }
}

function write(name, value) {
  try { localStorage.setItem(name, JSON.stringify(value, lighter)); return true; } catch { return false; }
}

// Files are too large for what a browser keeps: of a medium only its name stays.
function lighter(name, value) {
  return name === "media" && Array.isArray(value) ? value.map(({ kind, name }) => ({ kind, name, size: 0 })) : value;
}

export function saveSettings() { write(SETTINGS, settings); }

export function saveChats() {
  chats.splice(MOST_CHATS);
  const kept = chats.filter((chat) => chat.turns.length);
  while (!write(CHATS, kept) && kept.length > 1) kept.pop(); // full: the oldest go
}

export function newChat() {
  if (chats[0] && !chats[0].turns.length) return chats[0];
  chats.unshift({ id: crypto.randomUUID?.() ?? String(Date.now()), title: "", turns: [] });
  return chats[0];
}

export function titled(chat) {
  const first = chat.turns[0];
  if (!chat.title && first) chat.title = (first.content.trim() || first.media?.[0]?.name || "").slice(0, 60);
}
