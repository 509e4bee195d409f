// What this browser remembers: conversations and settings. The API key is not among them.

const CHATS = "pocketgem.chats", SETTINGS = "pocketgem.settings";
const MOST_CHATS = 100;

export const settings = { theme: "", thinking: "off", system: "", ...read(SETTINGS, {}) };
export const chats = read(CHATS, []).filter((chat) => Array.isArray(chat.turns));

function read(name, usual) {
  try { return JSON.parse(localStorage.getItem(name)) ?? usual; } catch { return usual; }
}

function write(name, value) {
  try { localStorage.setItem(name, JSON.stringify(value)); return true; } catch { return false; }
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
  if (!chat.title && chat.turns[0]) chat.title = chat.turns[0].content.trim().slice(0, 60);
}
