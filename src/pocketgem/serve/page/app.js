// The page: conversations on the left, one in the middle. Everything it knows lies in this browser.

import { answer, fault, request } from "./answer.js";
import { kindOf, Recorder, Tray } from "./media.js";
import { getKey, models, Refusal, setKey } from "./api.js";
import { chats, newChat, saveChats, saveSettings, settings, titled } from "./store.js";
import { element, TurnView } from "./view.js";

const $ = (id) => document.getElementById(id);
const FIELDS = ["system", "temperature", "top_p", "top_k", "seed", "max_tokens", "budget", "stop_text", "theme", "detail"];
let chat = newChat();
let known = [];
let running = null; // the AbortController of the answer that is coming in
let views = new Map();
const trouble = (text) => { $("trouble").textContent = text; $("trouble").hidden = !text; };
const tray = new Tray($("tray"), trouble);
const recorder = new Recorder($("record"), (file) => tray.add([file]), trouble);

// ---- conversations ---------------------------------------------------------------------------------------------

function show(which) {
  running?.abort();
  chat = which;
  views = new Map();
  $("thread").replaceChildren();
  for (const turn of chat.turns) { turn.writing = false; append(turn); }
  drawEmpty();
  drawChats();
  bottom();
  document.body.classList.remove("menu");
  $("composer").focus();
}

function append(turn) {
  $("thread").querySelector(".empty")?.remove();
  const view = new TurnView(turn, { again, edit, results, picture });
  views.set(turn, view);
  $("thread").append(view.root);
  return view;
}

function drawEmpty() {
  if (chat.turns.length) return;
  const text = model()?.chat === false ? "This model continues texts: it was not taught to chat. Write a beginning." : "Ask something. Nothing leaves this machine.";
  $("thread").replaceChildren(element("p", { className: "empty", text }));
}

function drawChats() {
  $("chats").replaceChildren(...chats.filter((one) => one.turns.length || one === chat).map((one) => {
    const row = element("div", { className: "chat" },
      element("button", { type: "button", className: "open", text: one.title || "New chat", title: one.title, onclick: () => show(one) }),
      element("button", { type: "button", className: "drop", text: "✕", title: "Delete this conversation", onclick: () => drop(one) }));
    row.setAttribute("aria-current", String(one === chat));
    return row;
  }));
}

function drop(one) {
  chats.splice(chats.indexOf(one), 1);
  saveChats();
  one === chat ? show(chats[0] ?? newChat()) : drawChats();
}

// ---- asking ----------------------------------------------------------------------------------------------------

const model = () => known.find((one) => one.id === $("model").value);

function send(text) {
  if (running || (!text.trim() && !tray.media.length) || !model()) return;
  const media = tray.take();
  chat.turns.push({ role: "user", content: text, ...(media.length ? { media } : {}) });
  append(chat.turns.at(-1));
  titled(chat);
  drawChats();
  $("composer").value = "";
  fit();
  ask();
}

async function ask() {
  const asked = chat, control = new AbortController();
  const turn = { role: "assistant", content: "", writing: true };
  const body = request({ ...settings, tools: tools() }, model(), asked.turns);
  asked.turns.push(turn);
  const view = append(turn);
  running = control;
  busy(true);
  try {
    await answer(model(), body, turn, (news) => told(news, view), control.signal);
  } catch (error) {
    failed(error, turn);
  } finally {
    turn.writing = false;
    view.draw();
    if (running === control) { running = null; busy(false); }
    saveChats();
    drawChats();
    if (!model()?.looked) connect(); // it was loaded for this answer: now the server knows what it can do
  }
}

function told({ reading, changed }, view) {
  if (reading) return progress(reading);
  if (!changed) return;
  $("reading").hidden = true;
  const low = nearBottom();
  view.changed();
  if (low) requestAnimationFrame(bottom);
}

function failed(error, turn) {
  if (error.name === "AbortError") { turn.facts = [{ text: "stopped" }]; return; }
  const text = error instanceof Refusal ? error.message : "The server cannot be reached. Is it still running?";
  fault(turn, text);
  if (error.status === 401) openSettings($("key"));
}

function again(turn) {
  if (running) return;
  cut(turn ? chat.turns.indexOf(turn) : lastIndex("assistant"));
  if (chat.turns.length) ask();
}

function edit(turn) {
  const at = turn ? chat.turns.indexOf(turn) : lastIndex("user");
  if (running || at < 0) return;
  $("composer").value = chat.turns[at].content;
  tray.fill(chat.turns[at].media ?? []);
  cut(at);
  fit();
  $("composer").focus();
}

function results(turn) {
  if (running) return;
  turn.answered = true;
  views.get(turn).draw();
  for (const call of turn.calls) {
    chat.turns.push({ role: "tool", id: call.id, content: call.result ?? "" });
    append(chat.turns.at(-1));
  }
  ask();
}

function cut(at) {
  if (at < 0) return;
  for (const turn of chat.turns.splice(at)) views.get(turn)?.root.remove();
  const before = chat.turns.at(-1);
  if (before?.answered) { before.answered = false; views.get(before)?.draw(); }
  saveChats();
  drawEmpty();
}

// The picture that an answer is about: the last one that was shown before it.
function picture(turn) {
  const at = chat.turns.indexOf(turn);
  const shown = chat.turns.slice(0, at < 0 ? undefined : at).flatMap((one) => one.media ?? []);
  return shown.filter((one) => one.kind === "image" && one.data).at(-1) ?? null;
}

const lastIndex = (role) => chat.turns.findLastIndex((turn) => turn.role === role);

function tools() {
  const text = settings.tools_text?.trim();
  if (!text) return [];
  try { const list = JSON.parse(text); return Array.isArray(list) ? list : []; } catch { return []; }
}

// ---- what is seen ----------------------------------------------------------------------------------------------

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  $("reading").hidden = true;
}

function progress({ prompt_tokens_read: read, prompt_tokens: total, seconds_left: left }) {
  $("reading").hidden = read >= total;
  $("bar").value = read / total;
  $("reading-text").textContent = `reading ${read} of ${total} tokens${left > 0.5 ? `, about ${Math.ceil(left)} s` : ""}`;
}

const nearBottom = () => { const box = $("thread"); return box.scrollHeight - box.scrollTop - box.clientHeight < 80; };
const bottom = () => { $("thread").scrollTop = $("thread").scrollHeight; };

function fit() {
  const field = $("composer");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

function applyTheme() { document.documentElement.dataset.theme = settings.theme; }

// ---- settings --------------------------------------------------------------------------------------------------

function openSettings(focus) {
  for (const name of FIELDS) $(name).value = settings[name] ?? "";
  $("tools").value = settings.tools_text ?? "";
  $("key").value = getKey();
  if (!$("settings").open) $("settings").showModal();
  focus?.focus?.();
}

function takeSettings() {
  for (const name of FIELDS) {
    const field = $(name);
    settings[name] = field.type === "number" ? (field.value === "" ? null : Number(field.value)) : field.value;
  }
  settings.tools_text = $("tools").value;
  const changed = getKey() !== $("key").value;
  setKey($("key").value);
  saveSettings();
  applyTheme();
  if (changed || !known.length) connect();
}

function checkTools() {
  const text = $("tools").value.trim();
  let wrong = "";
  try { if (text && !Array.isArray(JSON.parse(text))) wrong = "This must be a list."; } catch (error) { wrong = `This is not JSON: ${error.message}`; }
  $("tools-error").textContent = wrong;
  $("tools-error").hidden = !wrong;
}

async function connect() {
  try {
    known = (await models()).map((one) => ({ id: one.id, chat: one.chat ?? true, looked: one.chat !== undefined, takes: one.input_modalities ?? [] }));
    $("state").textContent = "";
  } catch (error) {
    known = [];
    $("state").textContent = error instanceof Refusal ? error.message : "no connection to the server";
    if (error.status === 401) openSettings($("key"));
  }
  $("model").replaceChildren(...known.map((one) => element("option", { value: one.id, text: one.id })));
  if (known.some((one) => one.id === settings.model)) $("model").value = settings.model;
  modelChanged();
}

function modelChanged() {
  const one = model();
  $("thinking").disabled = !one?.chat;
  $("hint").textContent = one && !one.chat ? "A base model: it continues what you write." : "";
  $("send").disabled = !one;
  const kinds = ["image", "audio", "video"].filter((kind) => one?.takes?.includes(kind));
  $("attach").hidden = !kinds.length;
  $("files").accept = kinds.map((kind) => `${kind}/*`).join(",");
  $("record").hidden = !kinds.includes("audio") || !window.MediaRecorder;
  drawEmpty();
}

// ---- wiring ----------------------------------------------------------------------------------------------------

$("form").addEventListener("submit", (event) => { event.preventDefault(); send($("composer").value); });
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => show(newChat()));
$("open-settings").addEventListener("click", () => openSettings());
$("open-help").addEventListener("click", () => $("help").showModal());
$("settings").addEventListener("close", takeSettings);
$("tools").addEventListener("input", checkTools);
$("forget").addEventListener("click", () => {
  if (!confirm("Delete all conversations in this browser?")) return;
  chats.splice(0);
  saveChats();
  $("settings").close();
  show(newChat());
});
$("menu").addEventListener("click", () => {
  $("menu").setAttribute("aria-expanded", String(document.body.classList.toggle("menu")));
});
$("model").addEventListener("change", () => { settings.model = $("model").value; saveSettings(); modelChanged(); });
$("thinking").addEventListener("change", () => { settings.thinking = $("thinking").value; saveSettings(); });
$("composer").addEventListener("input", fit);
$("composer").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send($("composer").value); }
  if (event.key === "ArrowUp" && !$("composer").value) { event.preventDefault(); edit(); }
});
// Only what the model takes: a file that it cannot see is better refused here than by the server.
function given(files) {
  const one = model();
  const taken = [...files].filter((file) => !kindOf(file) || one?.takes?.includes(kindOf(file)));
  tray.add(taken).then(() => { if (taken.length < files.length) trouble("This model does not take such files."); });
}
$("attach").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", () => { given($("files").files); $("files").value = ""; });
$("record").addEventListener("click", () => recorder.toggle());
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over-page"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over-page"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over-page");
  if (event.dataTransfer.files.length) given(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) { event.preventDefault(); given(event.clipboardData.files); }
});
const SHORT = {
  KeyA: () => { if (!$("attach").hidden) $("files").click(); }, KeyM: () => { if (!$("record").hidden) recorder.toggle(); },
  KeyN: () => show(newChat()), KeyR: () => again(), KeyS: () => openSettings(),
  KeyT: () => { const folds = $("thread").querySelectorAll("details.thought"); const last = folds[folds.length - 1]; if (last) last.open = !last.open; },
  KeyC: () => navigator.clipboard?.writeText(chat.turns[lastIndex("assistant")]?.content ?? ""),
};
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && running) running.abort();
  if (event.key === "/" && document.activeElement !== $("composer")) { event.preventDefault(); $("composer").focus(); }
  if (event.altKey && !event.ctrlKey && SHORT[event.code]) { event.preventDefault(); SHORT[event.code](); }
});

applyTheme();
$("thinking").value = settings.thinking;
show(chats.find((one) => one.turns.length) ?? chat);
connect();
