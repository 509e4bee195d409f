// A request for an answer: what is sent, and how the stream's pieces change a turn.

import { stream } from "./api.js";
import { content } from "./media.js";

const EFFORT = { off: "none", short: "low", on: "medium" };
const NUMBERS = ["temperature", "top_p", "top_k", "seed", "max_tokens"];

export function request(settings, model, turns) {
  const body = { model: model.id, stream: true, stream_options: { include_usage: true, include_progress: true } };
  for (const name of NUMBERS) if (Number.isFinite(settings[name])) body[name] = settings[name];
  if (settings.stop_text) body.stop = [settings.stop_text];
  if (!model.chat) return { ...body, prompt: turns.map((turn) => turn.content).join(""), max_tokens: body.max_tokens ?? 256 };
  body.reasoning_effort = EFFORT[settings.thinking] ?? "none";
  if (settings.thinking !== "off" && Number.isFinite(settings.budget)) body.thinking_budget = settings.budget;
  if (settings.tools?.length) body.tools = settings.tools;
  return { ...body, messages: messages(settings, turns) };
}

function messages({ system, detail }, turns) {
  const list = system?.trim() ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    if (turn.role === "tool") list.push({ role: "tool", tool_call_id: turn.id, content: turn.content });
    else if (turn.role === "user") list.push({ role: "user", content: content(turn, detail || "auto") });
    else list.push(answered(turn));
  }
  return list;
}

function answered(turn) {
  const message = { role: "assistant", content: turn.content };
  if (turn.thought) message.reasoning_content = turn.thought; // the server knows when it still matters
  if (turn.calls?.length) {
    message.tool_calls = turn.calls.map(({ id, name, arguments: args }) => ({ id, type: "function", function: { name, arguments: args } }));
  }
  return message;
}

// Reads the stream into ``turn``; ``tell`` is called with {reading} or {changed} after every piece.
export async function answer(model, body, turn, tell, signal) {
  const clock = { began: performance.now(), first: 0, last: 0, pieces: 0 };
  let usage = null, finish = null;
  for await (const { data, comment } of stream(model.chat ? "v1/chat/completions" : "v1/completions", body, signal)) {
    const reading = data?.progress ?? comment;
    if (reading?.prompt_tokens) tell({ reading });
    if (!data) continue;
    usage = data.usage ?? usage;
    const choice = data.choices?.[0];
    if (!choice) continue;
    finish = choice.finish_reason ?? finish;
    if (taken(choice, turn)) {
      clock.last = performance.now();
      clock.first ||= clock.last;
      clock.pieces++;
      tell({ changed: true });
    }
  }
  turn.facts = facts(clock, usage, finish);
}

function taken(choice, turn) {
  const delta = choice.delta ?? { content: choice.text };
  const thought = delta.reasoning_content ?? delta.reasoning ?? "";
  turn.thought = (turn.thought ?? "") + thought;
  turn.content += delta.content ?? "";
  for (const call of delta.tool_calls ?? []) joined(turn, call);
  for (const { reason } of delta.tool_call_errors ?? []) fault(turn, `A tool call could not be read: ${reason}`);
  if (delta.empty_reason) fault(turn, `No answer: ${delta.empty_reason}`);
  return Boolean(thought || delta.content || delta.tool_calls || delta.tool_call_errors || delta.empty_reason);
}

export function fault(turn, text) {
  turn.faults = [...(turn.faults ?? []), text];
}

function joined(turn, call) {
  turn.calls ??= [];
  const known = (turn.calls[call.index ?? 0] ??= { id: "", name: "", arguments: "" });
  known.id ||= call.id ?? "";
  known.name ||= call.function?.name ?? "";
  known.arguments += call.function?.arguments ?? "";
}

function facts(clock, usage, finish) {
  const list = [];
  const written = usage?.completion_tokens ?? clock.pieces;
  const seconds = (clock.last - clock.first) / 1000;
  list.push({ text: `${written} token${written === 1 ? "" : "s"}` });
  if (written > 1 && seconds > 0) list.push({ text: `${((written - 1) / seconds).toFixed(1)} tokens/s` });
  if (clock.first) list.push({ text: `first after ${((clock.first - clock.began) / 1000).toFixed(1)} s` });
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  if (cached !== undefined) {
    list.push({ text: `${cached} of ${usage.prompt_tokens} prompt tokens reused`, title: usage.cache_reason ?? "" });
  }
  for (const [kind, count] of Object.entries(usage?.prompt_tokens_details ?? {})) {
    const name = { image_tokens: "image", audio_tokens: "sound", video_tokens: "video" }[kind];
    if (name && count) list.push({ text: `${count} tokens of ${name}` });
  }
  for (const note of usage?.notes ?? []) list.push({ text: note });
  if (finish === "length") list.push({ text: "cut at the limit" });
  return list;
}
