// The text box for steps: marks mistakes while typing, and shows the picture after the steps.

import { NoKey, Offline, Refusal, checkSteps, listSteps, preview } from "./api.js";
import { Completion } from "./complete.js";
import { byId, el } from "./dom.js";
import { problemLines } from "./results.js";

const CHECK_MS = 140;
const DRAW_MS = 160;

const EXAMPLES = [
  'grayscale | edges(direction="vertical")',
  "clahe(clip_limit=3) | sharpen(amount=0.7)",
  "blur_background(sigma=6)",
  'min_size(64) | binarize(method="otsu")',
];

export class StepsBox {
  #box = byId("steps");
  #mirror = byId("steps-mirror");
  #said = byId("steps-said");
  #pair = byId("pair");
  #after = el("div", { class: "after" });
  #completion;
  #picture = null;
  #canonical = null;
  #checking = null;
  #drawing = null;
  #timer = 0;
  #url = null;
  #lost;

  /** @param {() => void} lost called when the server does not answer */
  constructor(lost) {
    this.#lost = lost;
    this.#completion = new Completion(this.#box, byId("offers"), () => this.#changed());
    this.#box.addEventListener("input", () => {
      this.#changed();
      this.#completion.open();
    });
    this.#box.addEventListener("keydown", (event) => {
      // A pipeline is one line; Enter checks it immediately.
      if (this.#completion.key(event)) event.preventDefault();
      else if (event.key === "Enter") {
        event.preventDefault();
        this.#changed(0);
      }
    });
    for (const text of EXAMPLES) {
      byId("examples").append(
        el("button", { type: "button", class: "example", onclick: () => this.write(text) }, text),
      );
    }
    this.#mark(null);
    this.#drawPair();
  }

  async start() {
    this.#completion.know(await listSteps());
  }

  write(text) {
    this.#box.value = text;
    this.#completion.close();
    this.#changed(0);
  }

  show(picture) {
    if (picture === this.#picture) return;
    this.#picture = picture;
    this.#drawPair();
    this.#draw();
  }

  /** Checks again after the server was lost or a key was entered. */
  again() {
    if (this.#box.value.trim() !== "") this.#changed(0);
  }

  #changed(wait = CHECK_MS) {
    this.#mark(null);
    this.#checking?.abort();
    clearTimeout(this.#timer);
    if (this.#box.value.trim() === "") {
      this.#canonical = null;
      this.#say("");
      this.#draw();
      return;
    }
    this.#timer = setTimeout(() => this.#check(this.#box.value), wait);
  }

  async #check(text) {
    this.#checking = new AbortController();
    const { signal } = this.#checking;
    try {
      const { canonical } = await checkSteps(text, signal);
      if (signal.aborted) return;
      this.#canonical = text;
      this.#say(canonical === text ? "" : canonical, "fine");
      this.#timer = setTimeout(() => this.#draw(), DRAW_MS);
    } catch (error) {
      if (error.name === "AbortError" || signal.aborted) return;
      this.#canonical = null;
      this.#refuse(error);
      this.#drawing?.abort();
      this.#after.classList.add("stale");
    }
  }

  #refuse(error) {
    if (error instanceof Refusal) {
      const { problem } = error;
      this.#say(problem.detail ?? problem.title, "wrong");
      if (typeof problem.offset === "number") this.#mark(problem);
    } else if (error instanceof Offline) {
      this.#say("The server does not answer. The steps are checked when it is back.", "wrong");
      this.#lost();
    } else if (error instanceof NoKey) this.#say("The server requires a key.", "wrong");
    else throw error;
  }

  #say(text, kind = "") {
    this.#said.className = `steps-said ${kind}`;
    this.#said.replaceChildren(
      ...(text === ""
        ? []
        : [kind === "fine" ? el("code", { title: "as it is stored, with every parameter" }, text) : text]),
    );
  }

  // The mirror lies behind the box with the same text and shows the marks that the command line prints below it.
  #mark(wrong) {
    this.#box.setAttribute("aria-invalid", String(wrong !== null));
    const text = this.#box.value;
    if (wrong === null) {
      this.#mirror.replaceChildren(`${text || this.#box.placeholder}\u200b`);
      return;
    }
    // Offsets count characters, and JavaScript counts an emoji as two.
    const characters = [...text];
    const end = Math.min(wrong.offset + Math.max(1, wrong.length), Math.max(characters.length, wrong.offset + 1));
    const part = characters.slice(wrong.offset, end).join("");
    const marks = `^${"~".repeat(end - wrong.offset - 1)}`;
    this.#mirror.replaceChildren(
      characters.slice(0, wrong.offset).join(""),
      el("span", { class: "mistake", "data-marks": marks }, part || "\u200b"),
      `${characters.slice(end).join("")}\u200b`,
    );
  }

  #drawPair() {
    this.#after.replaceChildren();
    this.#after.className = "after";
    if (this.#picture === null) {
      this.#pair.replaceChildren();
      return;
    }
    const before = el("img", { alt: `${this.#picture.name} before the steps`, decoding: "async", hidden: true });
    this.#picture.drawable().then((url) => {
      if (url !== null) before.src = url;
      before.hidden = url === null;
    });
    this.#pair.replaceChildren(
      el("figure", {}, el("figcaption", {}, "before"), el("div", { class: "stage" }, before)),
      el("figure", {}, el("figcaption", {}, "after"), this.#after),
    );
    this.#draw();
  }

  async #draw() {
    this.#drawing?.abort();
    if (this.#picture === null) return;
    if (this.#canonical === null) {
      this.#after.replaceChildren(el("p", { class: "quiet" }, "Write steps to see the picture after them."));
      this.#after.className = "after";
      return;
    }
    this.#drawing = new AbortController();
    const { signal } = this.#drawing;
    this.#after.classList.add("working");
    try {
      const url = URL.createObjectURL(await preview(this.#canonical, this.#picture.file, signal));
      const image = el("img", { src: url, alt: `${this.#picture.name} after ${this.#canonical}` });
      await image.decode();
      if (this.#url !== null) URL.revokeObjectURL(this.#url);
      this.#url = url;
      this.#after.replaceChildren(el("div", { class: "stage" }, image));
    } catch (error) {
      if (error.name === "AbortError" || signal.aborted) return;
      if (error instanceof Refusal)
        this.#after.replaceChildren(el("div", { class: "state failed" }, ...problemLines(error.problem)));
      else if (error instanceof Offline) this.#lost();
      else if (!(error instanceof NoKey)) throw error;
    }
    this.#after.className = "after";
  }
}
