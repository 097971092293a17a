// The tab "Inside": what a model makes of the selected picture, one drawing after the other.

import { NoKey, Offline, lookInside } from "./api.js";
import { el, say } from "./dom.js";
import { problemLines } from "./results.js";

const PARTS = [
  ["maps", "Feature maps, stage by stage", "First lines and colours at their places, then parts, at last coarse maps of objects. Dark is a map's least value, yellow its greatest."],
  ["grad_cam", "Grad-CAM", "Follows the gradient of the class back to the last maps: where the evidence for it lies."],
  ["occlusion", "Occlusion", "Hides one part after another and asks the model again. It costs about fifty answers and assumes nothing."],
  ["fields", "Receptive fields", "The pixels that one unit of each stage can see: the unit that stands out most."],
  ["kernels", "Kernels of the first layer", "What the first layer looks for. Trained kernels show edges and colours; untrained ones are noise."],
];
const OF_A_CLASS = ["grad_cam", "occlusion"];
const NO_KEY = "The server requires a key.";
const NO_ANSWER = "The server does not answer.";

/** The inside of one model for one picture. A replica draws one thing at a time, so they are fetched in turn. */
export class InsidePanel {
  #picture;
  #model;
  #sections;
  #choice;
  #fetching = new AbortController();
  #urls = new Map();
  /** Parts that the server refused with 422: this model has none of that kind, whatever the class. */
  #impossible = new Set();
  #lost;

  /**
   * @param {Object} picture
   * @param {Object} model of GET /models
   * @param {number} number 0 or 1: its colour
   * @param {{lost: () => void}} actions
   */
  constructor(picture, model, number, { lost }) {
    this.#picture = picture;
    this.#model = model;
    this.#lost = lost;
    this.#choice = el(
      "select",
      { onchange: () => this.#fetch(OF_A_CLASS) },
      el("option", { value: "" }, "most probable"),
      ...model.classes.map((name) => el("option", { value: name }, name)),
    );
    this.#sections = new Map(PARTS.map(([part, title, text]) => [part, this.#section(part, title, text)]));
    this.element = el(
      "article",
      { class: `panel inside c${number}`, "aria-label": model.name },
      el("h3", {}, el("span", { class: "swatch" }), model.name, el("code", { class: "quiet" }, model.model)),
      model.explain
        ? el("label", { class: "field" }, "Class that Grad-CAM and occlusion explain", this.#choice)
        : el("p", { class: "state" }, "This model offers no look inside."),
      ...(model.explain ? [...this.#sections.values()].map(({ element }) => element) : []),
    );
    if (model.explain) this.#fetch(PARTS.map(([part]) => part));
  }

  draw() {}

  close() {
    this.#fetching.abort();
    for (const url of this.#urls.values()) URL.revokeObjectURL(url);
  }

  #section(part, title, text) {
    const body = el("div", { class: "drawing", "aria-live": "off" });
    const element = el(
      "section",
      { class: "inside-part", "data-part": part },
      el("h4", {}, title),
      el("p", { class: "quiet" }, text),
      body,
    );
    return { element, body, title };
  }

  async #fetch(parts) {
    this.#fetching.abort();
    this.#fetching = new AbortController();
    const { signal } = this.#fetching;
    // With the parts that an earlier, ended call did not reach.
    const missing = PARTS.map(([part]) => part).filter(
      (part) => !this.#impossible.has(part) && (parts.includes(part) || !this.#urls.has(part)),
    );
    for (const part of missing) {
      this.#forget(part);
      this.#state(part, el("p", { class: "quiet" }, "Waiting for its turn"));
    }
    for (const [number, part] of missing.entries()) {
      const { title } = this.#sections.get(part);
      this.#state(part, el("p", { class: "quiet working" }, "Drawing"));
      try {
        const name = OF_A_CLASS.includes(part) ? this.#choice.value : "";
        this.#show(part, title, await lookInside(this.#model.name, this.#picture.file, part, name, signal));
      } catch (error) {
        if (signal.aborted || error.name === "AbortError") return;
        if (error instanceof Offline) this.#lost();
        this.#failed(part, error);
        if (error instanceof NoKey || error instanceof Offline) {
          const reason = `Not drawn. ${error instanceof NoKey ? NO_KEY : NO_ANSWER}`;
          for (const other of missing.slice(number + 1)) this.#state(other, el("p", { class: "quiet" }, reason));
          return;
        }
      }
    }
    const failed = PARTS.length - this.#urls.size;
    say(`${this.#model.name}: ${failed ? `${this.#urls.size} of ${PARTS.length} parts are` : "everything inside is"} drawn`);
  }

  #forget(part) {
    URL.revokeObjectURL(this.#urls.get(part));
    this.#urls.delete(part);
  }

  #show(part, title, png) {
    const url = URL.createObjectURL(png);
    this.#urls.set(part, url);
    const image = el("img", { src: url, alt: `${title} of ${this.#model.name} for ${this.#picture.name}` });
    const link = el("a", { href: url, download: `${this.#model.name}-${part}.png`, class: "save" }, "Save as PNG");
    this.#state(part, el("div", { class: "sheet", tabindex: "0", role: "group", "aria-label": title }, image), link);
  }

  #failed(part, error) {
    const again = el("button", { type: "button", class: "plain", onclick: () => this.#fetch([part]) }, "Try again");
    let lines = [el("p", {}, String(error.message || error))];
    if (error instanceof NoKey) lines = [el("p", {}, NO_KEY)];
    else if (error instanceof Offline) lines = [el("p", {}, NO_ANSWER)];
    else if (error.problem) lines = problemLines(error.problem);
    if (error.status === 422) {
      this.#impossible.add(part);
      this.#state(part, el("div", { class: "state failed" }, ...lines));
    } else {
      this.#state(part, el("div", { class: "state failed" }, ...lines, again));
    }
  }

  #state(part, ...children) {
    this.#sections.get(part).body.replaceChildren(...children);
  }
}
