// One turn of a conversation as DOM nodes, and changing them while an answer comes in.

import { markdown } from "./markdown.js";
import { preview } from "./media.js";
import { drawn, placesIn } from "./places.js";

export function element(kind, { text, ...more } = {}, ...children) {
  const node = Object.assign(document.createElement(kind), more);
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

export class TurnView {
  constructor(turn, actions) {
    this.turn = turn;
    this.body = element("div", { className: "body" });
    this.meta = element("div", { className: "meta" });
    this.root = element("article", { className: `turn ${turn.role}` }, this.body, this.meta);
    this.root.setAttribute("aria-label", { user: "You", assistant: "Answer", tool: "Result of a tool" }[turn.role]);
    this.actions = actions;
    this.waiting = false;
    this.draw();
  }

  // Many tokens a second, one drawing a frame.
  changed() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  draw() {
    const { turn } = this;
    if (turn.role !== "assistant") this.body.replaceChildren(...this.given());
    else this.body.replaceChildren(...this.answer());
    this.root.classList.toggle("writing", Boolean(turn.writing));
    this.root.setAttribute("aria-busy", String(Boolean(turn.writing)));
    this.meta.replaceChildren(...this.facts());
  }

  // What the person wrote, behind what they showed.
  given() {
    const { turn } = this;
    if (!turn.media?.length) return turn.content ? [turn.content] : [];
    return [element("div", { className: "media" }, ...turn.media.map(preview)), turn.content];
  }

  // The picture with the boxes and points of a whole answer on it.
  places() {
    const { turn } = this;
    const places = turn.writing ? [] : placesIn(turn.content);
    const image = places.length ? this.actions.picture(turn) : null;
    return image ? [drawn(image, places)] : [];
  }

  answer() {
    const { turn } = this, parts = [];
    if (turn.thought) parts.push(this.thought());
    if (turn.content) {
      const text = element("div");
      text.append(markdown(turn.content));
      for (const pre of text.querySelectorAll("pre")) pre.append(copier(() => pre.querySelector("code").textContent));
      parts.push(...this.places(), ...text.childNodes);
    }
    (turn.calls ?? []).forEach((call, index) => parts.push(this.call(call, index)));
    for (const fault of turn.faults ?? []) parts.push(element("div", { className: "fault", text: fault }));
    return parts;
  }

  thought() {
    const { turn } = this;
    if (!this.fold) {
      this.fold = element("details", { className: "thought" }, element("summary"), element("div", { className: "text" }));
    }
    const thinking = turn.writing && !turn.content && !(turn.calls ?? []).length;
    this.fold.firstChild.textContent = thinking ? "Thinking…" : "What it thought";
    this.fold.lastChild.textContent = turn.thought;
    return this.fold;
  }

  call(call, index) {
    const box = element("div", { className: "call" },
      element("div", { className: "name", text: `${call.name}(…)` }),
      element("pre", { text: pretty(call.arguments) }));
    if (this.turn.writing || this.turn.answered) return box;
    const field = element("textarea", { rows: 2, placeholder: "What the tool gives back", value: call.result ?? "" });
    field.setAttribute("aria-label", `Result of ${call.name}`);
    field.addEventListener("input", () => { call.result = field.value; });
    box.append(field);
    if (index === this.turn.calls.length - 1)
      box.append(element("button", { type: "button", text: "Go on with the results", onclick: () => this.actions.results(this.turn) }));
    return box;
  }

  facts() {
    const { turn, actions } = this;
    if (turn.writing) return [];
    const button = (text, label, onclick) => element("button", { type: "button", text, title: label, onclick });
    if (turn.role === "user") return [button("edit", "Change this message and ask again", () => actions.edit(turn))];
    if (turn.role === "tool") return [];
    return [
      ...(turn.facts ?? []).map((fact) => element("span", { text: fact.text, title: fact.title ?? "" })),
      button("copy", "Copy the answer (Alt C)", () => navigator.clipboard?.writeText(turn.content)),
      button("again", "Another answer (Alt R)", () => actions.again(turn)),
    ];
  }
}

function pretty(text) {
  try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
}

function copier(text) {
  return element("button", { type: "button", text: "copy", onclick: () => navigator.clipboard?.writeText(text()) });
}
