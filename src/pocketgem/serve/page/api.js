// The server's HTTP, from this page's own origin. Streams are read as they come: events, and the comments between them.

let key = sessionStorage.getItem("key") ?? "";
export const setKey = (value) => { key = value; value ? sessionStorage.setItem("key", value) : sessionStorage.removeItem("key"); };
export const getKey = () => key;

export class Refusal extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

function headers(more = {}) {
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

export async function models() {
  const reply = await fetch("v1/models", { headers: headers() });
  if (!reply.ok) throw await refusal(reply);
  return (await reply.json()).data;
}

export async function* stream(path, body, signal) {
  const reply = await fetch(path, {
    method: "POST", signal, headers: headers({ "Content-Type": "application/json" }), body: JSON.stringify(body),
  });
  if (!reply.ok) throw await refusal(reply);
  for await (const line of lines(reply.body)) {
    if (line.startsWith(":")) { const note = parsed(line.slice(1).trim().replace(/^progress /, "")); if (note) yield { comment: note }; }
    else if (line.startsWith("data:")) {
      const text = line.slice(5).trim();
      if (text === "[DONE]") return;
      const data = parsed(text);
      if (data?.error) throw new Refusal(reply.status, data.error.message ?? "the server failed");
      if (data) yield { data };
    }
  }
}

async function* lines(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += decoder.decode(value ?? new Uint8Array(), { stream: !done });
      const found = rest.split("\n");
      rest = found.pop();
      yield* found.map((line) => line.replace(/\r$/, ""));
      if (done) { if (rest) yield rest; return; }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(text) {
  try { return JSON.parse(text); } catch { return null; }
}

async function refusal(reply) {
  const body = parsed(await reply.text().catch(() => ""));
  return new Refusal(reply.status, body?.error?.message ?? `the server answered ${reply.status}`);
}
