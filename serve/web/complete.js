// Completions at the caret: names of steps, of their parameters, and values of a parameter.

import { el } from "./dom.js";

const MOST = 60;

/** Offers below a text box, following the ARIA pattern of an editable combobox with a listbox (ARIA APG). */
export class Completion {
  #box;
  #list;
  #steps = [];
  #offers = [];
  #active = -1;
  #chosen = false;
  #accepted;

  /** @param {() => void} accepted called when an offer has changed the text */
  constructor(box, list, accepted) {
    this.#box = box;
    this.#list = list;
    this.#accepted = accepted;
    box.addEventListener("blur", () => this.close());
    box.addEventListener("click", () => this.close());
  }

  /** @param {Array<{name: string, kind: string, parameters: Array<Object>, help: string}>} steps of GET /steps */
  know(steps) {
    this.#steps = steps;
  }

  /** Shows the matching offers; with `all` also before anything is typed. */
  open(all = false) {
    const { start, offers } = offersAt(this.#steps, this.#box.value, this.#box.selectionStart, all);
    this.#offers = offers.slice(0, MOST).map((offer) => ({ ...offer, start }));
    if (this.#offers.length === 0) return this.close();
    this.#list.replaceChildren(
      ...this.#offers.map((offer, number) =>
        el(
          "li",
          {
            id: `offer-${number}`,
            role: "option",
            // mousedown comes before the box loses its focus, which would close the list.
            onmousedown: (event) => {
              event.preventDefault();
              this.#accept(offer);
            },
          },
          el("code", {}, offer.label),
          el("span", { class: "quiet" }, offer.help),
        ),
      ),
    );
    this.#list.hidden = false;
    this.#list.scrollTop = 0;
    this.#box.setAttribute("aria-expanded", "true");
    this.#chosen = false;
    this.#move(0);
  }

  close() {
    this.#list.hidden = true;
    this.#active = -1;
    this.#box.setAttribute("aria-expanded", "false");
    this.#box.removeAttribute("aria-activedescendant");
  }

  /** Handles a key; returns whether it was for the offers. Tab leaves the box unless an offer was selected. */
  key(event) {
    if (this.#list.hidden) {
      if (event.key !== "ArrowDown" && !(event.key === " " && event.ctrlKey)) return false;
      this.open(true);
      return true;
    }
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step !== undefined) {
      this.#chosen = true;
      this.#move((this.#active + step + this.#offers.length) % this.#offers.length);
    } else if (event.key === "Enter" || (event.key === "Tab" && this.#chosen && !event.shiftKey)) {
      this.#accept(this.#offers[this.#active]);
    } else if (event.key === "Escape") {
      this.close();
    } else {
      return false;
    }
    return true;
  }

  #move(to) {
    this.#list.children[this.#active]?.setAttribute("aria-selected", "false");
    this.#active = to;
    const item = this.#list.children[to];
    item.setAttribute("aria-selected", "true");
    item.scrollIntoView({ block: "nearest" });
    this.#box.setAttribute("aria-activedescendant", item.id);
  }

  #accept({ start, insert, back }) {
    const box = this.#box;
    box.setRangeText(insert, start, box.selectionStart, "end");
    box.selectionStart = box.selectionEnd = box.selectionStart - back;
    this.close();
    this.#accepted();
  }
}

function offersAt(steps, text, caret, all) {
  const { call, used, parameter, inText } = contextOf(text.slice(0, caret));
  const typed = text.slice(0, caret).match(/[A-Za-z_0-9"]*$/)[0];
  const start = caret - typed.length;
  const nothing = { start, offers: [] };
  if (inText && !parameter) return nothing;
  if (typed === "" && !all) return nothing;
  const fits = (name) => name.startsWith(typed) && name !== typed;
  if (call === null) {
    const before = text.slice(0, start).trimEnd();
    if (before !== "" && !before.endsWith("|")) return nothing;
    const first = steps.filter((step) => fits(step.name));
    const rest =
      typed.length < 2
        ? []
        : steps.filter((step) => !first.includes(step) && step.name !== typed && step.name.includes(typed));
    return { start, offers: [...first, ...rest].map(stepOffer) };
  }
  const parameters = steps.find((step) => step.name === call)?.parameters ?? [];
  if (parameter !== null) {
    const type = parameters.find(({ name }) => name === parameter)?.type ?? "";
    const values = type.match(/"[^"]*"|\bTrue\b|\bFalse\b/g) ?? (type === "bool" ? ["True", "False"] : []);
    return { start, offers: values.filter(fits).map((value) => ({ label: value, insert: value, back: 0, help: "" })) };
  }
  const left = parameters.filter(({ name }) => fits(name) && !used.includes(name));
  return { start, offers: left.map(parameterOffer) };
}

function stepOffer({ name, kind, parameters, help }) {
  const open = parameters.some(({ required }) => required);
  const [line] = help.split("\n", 1);
  return {
    label: `${name}(${parameters.map((one) => one.name).join(", ")})`.replace("()", ""),
    insert: open ? `${name}()` : name,
    back: open ? 1 : 0,
    help: kind === "filter" ? line : `${kind[0].toUpperCase()}${kind.slice(1)}: ${line}`,
  };
}

function parameterOffer({ name, type, default: value, required, help }) {
  const text = [type, required ? "required" : `default ${value}`, help].filter(Boolean).join("; ");
  return { label: `${name}=`, insert: `${name}=`, back: 0, help: text };
}

// The call at the end of `text`, the parameters it already has, and the one whose value is being typed.
function contextOf(text) {
  const calls = [];
  let quote = null;
  let word = "";
  for (const char of text) {
    const within = calls.at(-1);
    if (quote !== null) {
      if (char === quote) quote = null;
      continue;
    }
    if (char === '"' || char === "'") quote = char;
    else if (char === "(") calls.push({ name: word, used: [], parameter: null });
    else if (char === ")") calls.pop();
    else if (char === "=" && within) {
      within.used.push(word);
      within.parameter = word;
    } else if (char === "," && within) within.parameter = null;
    if (/\w/.test(char)) word += char;
    else if (char.trim() !== "") word = "";
    else if (within === undefined) word = "";
  }
  const within = calls.at(-1) ?? { name: null, used: [], parameter: null };
  return { call: within.name, used: within.used, parameter: within.parameter, inText: quote !== null };
}
