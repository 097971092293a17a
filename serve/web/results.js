// The answers for the selected picture: one panel per model, with bars, Grad-CAM and the model's view.

import { NoKey, Refusal, modelView } from "./api.js";
import { el, percent } from "./dom.js";

const TICK_MS = 250;
const LONG = 24;

/** One model's panel. Its elements stay while the picture stays, so that a longer answer does not move the page. */
export class Panel {
  #picture;
  #model;
  #number;
  #again;
  #busyUntil;
  #bars = el("ol", { class: "bars" });
  #state = el("div", { class: "state", hidden: true });
  #heat = el("img", { class: "heat", alt: "", hidden: true });
  #seen = el("figure", { class: "seen", hidden: true });
  #foot = el("p", { class: "foot quiet" });
  #viewing = null;
  #ticking = null;

  /**
   * @param {Object} picture
   * @param {Object} model of GET /models
   * @param {number} number 0 or 1: its colour
   * @param {{again: () => void, busyUntil: () => number}} actions
   */
  constructor(picture, model, number, { again, busyUntil }) {
    this.#picture = picture;
    this.#model = model;
    this.#number = number;
    this.#again = again;
    this.#busyUntil = busyUntil;
    this.element = this.#frame();
  }

  draw(entry, { explain, topK }) {
    const answer = entry.answer;
    this.element.setAttribute("aria-busy", String(entry.state === "asking" && answer === null));
    this.#bars.hidden = answer === null;
    this.#foot.hidden = answer === null;
    if (answer !== null) {
      this.#drawBars(answer, topK);
      this.#drawFoot(answer);
      this.#drawHeat(answer, explain);
      this.#drawSeen();
    }
    this.#drawState(entry);
  }

  close() {
    this.#viewing?.abort();
    clearInterval(this.#ticking);
  }

  #frame() {
    const shown = el("img", { class: "shown", alt: this.#picture.name, decoding: "async" });
    const stage = el("div", { class: "stage" }, el("div", { class: "framed" }, shown, this.#heat));
    this.#picture.drawable().then((url) => {
      if (url !== null) shown.src = url;
      else
        stage.replaceChildren(el("p", { class: "quiet" }, "Neither this browser nor the server can show this file."));
    });
    shown.addEventListener("load", () =>
      shown.classList.toggle("tiny", Math.max(shown.naturalWidth, shown.naturalHeight) <= 96),
    );
    const { input } = this.#model;
    return el(
      "article",
      { class: `panel c${this.#number}`, "aria-label": this.#model.name },
      el(
        "h3",
        {},
        el("span", { class: "swatch" }),
        this.#model.name,
        el("code", { class: "quiet" }, this.#model.model),
      ),
      el(
        "div",
        { class: "panel-body" },
        stage,
        el("div", { class: "verdict" }, this.#state, this.#bars, input?.size?.[0] ? this.#seen : null),
      ),
      this.#foot,
    );
  }

  #drawBars(answer, topK) {
    const rows = answer.classes.slice(0, topK);
    this.#bars.classList.toggle("many", rows.length > 12);
    this.#bars.replaceChildren(
      ...rows.map(({ class: name, probability }) => {
        const bar = el("span", { class: "bar" });
        bar.style.setProperty("--share", probability);
        return el(
          "li",
          {},
          el("span", { class: name.length > LONG ? "name long" : "name" }, name),
          el("span", { class: "share", title: String(probability) }, percent(probability)),
          bar,
        );
      }),
    );
  }

  #drawFoot(answer) {
    const { timing } = answer;
    const times = [
      ["decode", timing?.decode_ms],
      ["queue", timing?.queue_ms],
      ["model", timing?.infer_ms],
      ["total", timing?.total_ms],
    ].filter(([, ms]) => typeof ms === "number");
    const text = times.map(([name, ms]) => `${name} ${ms.toFixed(1)} ms`).join(", ");
    this.#foot.textContent = `${text}; bundle ${answer.bundleId.slice(0, 12)}`;
  }

  #drawHeat(answer, explain) {
    this.#heat.hidden = !(explain && answer.explanation);
    if (!answer.explanation || this.#heat.dataset.of === answer.bundleId) return;
    this.#heat.dataset.of = answer.bundleId;
    this.#heat.src = `data:image/png;base64,${answer.explanation}`;
    this.#heat.alt = `Grad-CAM: evidence for ${answer.classes[0].class}`;
  }

  async #drawSeen() {
    if (this.#viewing !== null) return;
    this.#viewing = new AbortController();
    try {
      const url = URL.createObjectURL(await modelView(this.#model.name, this.#picture.file, this.#viewing.signal));
      const image = el("img", { src: url, alt: `${this.#picture.name} as ${this.#model.name} sees it` });
      image.addEventListener("load", () => URL.revokeObjectURL(url));
      const { steps, fit, size, channels } = this.#model.input;
      const text = [steps, fit].filter(Boolean).join(" | ");
      this.#seen.replaceChildren(
        image,
        el(
          "figcaption",
          {},
          el("b", {}, "What the model sees"),
          el("span", {}, `${size[1]} × ${size[0]}, ${channels === 1 ? "grey" : `${channels} channels`}`),
          el("code", { title: text }, short(text)),
        ),
      );
      this.#seen.hidden = false;
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Refusal) && !(error instanceof NoKey)) this.#viewing = null;
    }
  }

  #drawState(entry) {
    clearInterval(this.#ticking);
    const content = this.#stateContent(entry);
    this.#state.hidden = content === null;
    this.#state.className = `state ${entry.state}`;
    const hadFocus = this.#state.contains(document.activeElement);
    this.#state.replaceChildren(...(content ?? []));
    if (hadFocus) this.#focus();
  }

  // The pressed button was removed: focus moves to its panel.
  #focus() {
    this.element.tabIndex = -1;
    this.element.focus();
  }

  #stateContent(entry) {
    const again = (words) => el("button", { type: "button", class: "plain", onclick: this.#again }, words);
    switch (entry.state) {
      case "waiting":
        return [el("p", { class: "quiet" }, "Waiting for its turn")];
      case "asking":
        return entry.answer === null ? [el("p", { class: "quiet working" }, `Asking ${this.#model.name}`)] : null;
      case "busy":
        return [el("p", {}, `${this.#model.name} is busy. `, this.#countdown()), again("Retry now")];
      case "offline":
        return [el("p", {}, "The server does not answer. This picture is sent when the server is back.")];
      case "locked":
        return [el("p", {}, "The server requires a key."), again("Enter a key")];
      case "failed":
        return [...problemLines(entry.problem), again("Try again")];
      default:
        return null;
    }
  }

  #countdown() {
    const left = el("span", { class: "count", "aria-hidden": "true" });
    const tick = () => {
      const seconds = Math.max(0, Math.ceil((this.#busyUntil() - Date.now()) / 1000));
      left.textContent = seconds > 0 ? `Retrying in ${seconds} s.` : "Retrying now.";
    };
    tick();
    this.#ticking = setInterval(tick, TICK_MS);
    return left;
  }
}

/** A refusal: a short headline, then the server's own text. */
export function problemLines(problem) {
  const { title, status, detail, how, reason } = problem;
  return [
    el("p", { class: "wrong" }, el("strong", {}, headline(problem))),
    detail ? el("p", {}, sentence(detail)) : null,
    how ? el("p", { class: "quiet" }, how) : null,
    el(
      "p",
      { class: "quiet code" },
      el("code", {}, [status, title, reason && `(${reason})`].filter(Boolean).join(" ")),
    ),
  ].filter(Boolean);
}

// The title of a problem only names its HTTP status.
const HEADLINES = {
  400: "Unreadable file",
  404: "No such model",
  408: "Upload too slow",
  413: "Too large",
  415: "Unsupported file type",
  500: "The server failed",
  504: "No answer in time",
};

/** A problem in a few words. */
export function headline({ type, status, title, reason }) {
  if (type === "urn:striate:dropped") return `Dropped: ${String(reason ?? "").replace("dropped:", "")}`;
  return HEADLINES[status] ?? title;
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** Whether two models agree on a picture; "" until both have answered. */
export function agreement(entries) {
  const best = entries.map(({ entry }) => entry.answer?.classes[0].class);
  if (best.length < 2 || best.includes(undefined)) return "";
  if (best[0] === best[1]) return `Both say ${best[0]}.`;
  return `${entries[0].model} says ${best[0]}, ${entries[1].model} says ${best[1]}.`;
}

// A pipeline without its arguments; the whole pipeline is in the title and under "Where it came from".
function short(text) {
  return text.replace(/\((?:[^()"]|"[^"]*")*\)/g, "");
}
