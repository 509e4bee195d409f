// Pictures, sounds and videos for the next message: picked, dropped, pasted or recorded, and how they are sent.

import { element } from "./view.js";

const MOST = 24 << 20; // bytes of all files of a message: the server takes 32 MiB of JSON, and base64 is a third longer
const LONGEST = 30; // seconds of a recording: what a model hears at once

const KIND = /^(image|audio|video)\//;
const ENDINGS = { png: "image", jpg: "image", jpeg: "image", webp: "image", gif: "image", wav: "audio", mp3: "audio", flac: "audio", ogg: "audio", m4a: "audio", mp4: "video", webm: "video" };

// What a file is, by its type, or its name where the system knows no type.
export function kindOf(file) {
  return KIND.exec(file.type)?.[1] ?? ENDINGS[file.name.split(".").pop().toLowerCase()] ?? null;
}

export async function readFile(file) {
  const kind = kindOf(file);
  if (!kind) throw new Error(`${file.name}: only pictures, sounds and videos can be sent`);
  if (file.size > MOST) throw new Error(`${file.name}: larger than ${MOST >> 20} MiB`);
  return { kind, name: file.name || kind, size: file.size, data: await dataUrl(file) };
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name}: cannot be read`));
    reader.readAsDataURL(file);
  });
}

export const tooMuch = (media) => media.reduce((sum, one) => sum + one.size, 0) > MOST ? `more than ${MOST >> 20} MiB at once` : "";

// A turn's content as OpenAI's API has it. What was sent before a reload is not kept: a word stands in its place.
export function content(turn, detail) {
  if (!turn.media?.length) return turn.content;
  return [...turn.media.map((one) => part(one, detail)), { type: "text", text: turn.content }];
}

function part({ kind, data, name }, detail) {
  if (!data) return { type: "text", text: `(${kind} ${name}, no longer here)` };
  if (kind === "image") return { type: "image_url", image_url: { url: data, detail } };
  if (kind === "video") return { type: "video_url", video_url: { url: data } };
  return { type: "input_audio", input_audio: { data: data.slice(data.indexOf(",") + 1), format: /webm/.test(data.slice(0, 40)) ? "webm" : "wav" } };
}

// A medium to look at or listen to.
export function preview(one) {
  if (!one.data) return element("span", { className: "gone", text: `${one.kind}: ${one.name}` });
  if (one.kind === "image") return element("img", { src: one.data, alt: one.name });
  const player = element(one.kind === "audio" ? "audio" : "video", { src: one.data, controls: true });
  player.setAttribute("aria-label", one.name);
  return player;
}

// The media that wait to be sent.
export class Tray {
  constructor(box, say) {
    this.box = box;
    this.say = say;
    this.media = [];
  }

  async add(files) {
    for (const file of files) {
      try { this.put(await readFile(file)); } catch (error) { this.say(error.message); }
    }
  }

  put(one) {
    const wrong = tooMuch([...this.media, one]);
    if (wrong) { this.say(`${one.name}: ${wrong}`); return; }
    this.say("");
    this.media.push(one);
    this.draw();
  }

  take() {
    const { media } = this;
    this.media = [];
    this.draw();
    return media;
  }

  fill(media) {
    this.media = media.filter((one) => one.data);
    this.draw();
  }

  draw() {
    this.box.hidden = !this.media.length;
    this.box.replaceChildren(...this.media.map((one) => {
      const remove = element("button", { type: "button", text: "✕", title: `Remove ${one.name}`, onclick: () => this.remove(one) });
      remove.setAttribute("aria-label", `Remove ${one.name}`);
      return element("div", { className: "medium" }, preview(one), remove);
    }));
  }

  remove(one) {
    this.media = this.media.filter((other) => other !== one);
    this.draw();
  }
}

// The microphone: ``toggle`` begins a recording and ends it; a file comes out.
export class Recorder {
  constructor(button, done, say) {
    Object.assign(this, { button, done, say, recorder: null });
  }

  async toggle() {
    if (this.recorder) { this.recorder.stop(); return; }
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      this.begin(new MediaRecorder(stream), stream);
    } catch (error) {
      this.say(`The microphone cannot be used: ${error.message}`);
    }
  }

  begin(recorder, stream) {
    const pieces = [], timer = setTimeout(() => recorder.stop(), LONGEST * 1000);
    recorder.ondataavailable = (event) => pieces.push(event.data);
    recorder.onstop = () => {
      clearTimeout(timer);
      for (const track of stream.getTracks()) track.stop();
      this.recorder = null;
      this.draw();
      this.done(new File(pieces, "recording.webm", { type: "audio/webm" }));
    };
    this.recorder = recorder;
    recorder.start();
    this.draw();
  }

  draw() {
    this.button.setAttribute("aria-pressed", String(Boolean(this.recorder)));
    this.button.title = this.recorder ? "End the recording" : `Record with the microphone, ${LONGEST} seconds at most`;
  }
}
