// The pictures (dropped, pasted, chosen or photographed) and their list.

import { preview } from "./api.js";
import { byId, counted, el, fileSize, percent, say } from "./dom.js";
import { headline } from "./results.js";

let numbers = 0;

/** A picture of the user: its file, and a URL for the browser. */
export class Picture {
  constructor(file) {
    numbers += 1;
    this.id = numbers;
    this.file = file;
    this.name = file.name || `pasted-${numbers}.png`;
    this.url = URL.createObjectURL(file);
    this.shown = null;
  }

  /** A URL that the browser can draw; the server converts formats like TIFF and NumPy. null: neither can. */
  drawable() {
    this.shown ??= loads(this.url).then(async (fine) => {
      if (fine) return this.url;
      try {
        const drawn = await preview("rgb", this.file);
        URL.revokeObjectURL(this.url);
        this.url = URL.createObjectURL(drawn);
        return this.url;
      } catch {
        return null;
      }
    });
    return this.shown;
  }

  close() {
    URL.revokeObjectURL(this.url);
  }
}

/** Listens for pictures from the buttons, the clipboard and drag and drop. */
export function takePictures(add) {
  for (const id of ["files", "photo"]) {
    byId(id).addEventListener("change", (event) => {
      add([...event.target.files]);
      event.target.value = "";
    });
  }
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length === 0) return;
    event.preventDefault();
    add(files);
  });
  let depth = 0;
  const over = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dragging", depth > 0);
  };
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => carriesFiles(event) && over(1));
  addEventListener("dragleave", (event) => carriesFiles(event) && over(-1));
  addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    depth = 0;
    over(0);
    add([...event.dataTransfer.files]);
  });
}

/** The list: one row per picture with each model's best class. It reuses row elements, so that focus stays. */
export class PictureList {
  #rows = new Map();
  #list = byId("pictures");
  #choose;
  #remove;

  constructor({ choose, remove, clear }) {
    this.#choose = choose;
    this.#remove = remove;
    byId("clear").addEventListener("click", clear);
    this.#list.addEventListener("keydown", (event) => this.#keys(event));
  }

  /** @param {(picture: Picture) => Array<{model: string, entry: Object}>} entries */
  draw(pictures, selected, entries) {
    this.#list.hidden = byId("tray-head").hidden = pictures.length === 0;
    byId("tray-title").textContent = counted(pictures.length, "picture");
    for (const [picture, row] of this.#rows) {
      if (!pictures.includes(picture)) {
        row.item.remove();
        this.#rows.delete(picture);
      }
    }
    for (const picture of pictures) {
      if (!this.#rows.has(picture)) this.#rows.set(picture, this.#row(picture));
      this.update(picture, picture === selected, entries(picture));
    }
  }

  update(picture, isSelected, entries) {
    const row = this.#rows.get(picture);
    if (row === undefined) return;
    if (isSelected) row.button.setAttribute("aria-current", "true");
    else row.button.removeAttribute("aria-current");
    row.best.replaceChildren(...entries.map(({ entry }, number) => best(entry, number)));
  }

  focus(picture) {
    this.#rows.get(picture)?.button.focus();
  }

  #row(picture) {
    const best = el("span", { class: "row-best" });
    const thumb = el("img", { class: "thumb", alt: "", decoding: "async" });
    picture.drawable().then((url) => (url === null ? thumb.classList.add("blank") : (thumb.src = url)));
    const words = el("span", { class: "row-words" }, el("span", { class: "row-name" }, picture.name), best);
    const button = el("button", { type: "button", class: "row", onclick: () => this.#choose(picture) }, thumb, words);
    const close = el("button", {
      type: "button",
      class: "close",
      "aria-label": `Remove ${picture.name}`,
      title: "Remove",
      onclick: () => this.#remove(picture),
    });
    const item = el("li", {}, button, close);
    this.#list.append(item);
    return { item, button, best };
  }

  #keys(event) {
    const rows = [...this.#rows.keys()];
    const at = rows.findIndex((picture) => this.#rows.get(picture).button === event.target);
    if (at < 0) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step !== undefined) {
      event.preventDefault();
      const next = rows[Math.min(Math.max(at + step, 0), rows.length - 1)];
      this.focus(next);
      this.#choose(next);
    } else if (event.key === "Delete") {
      event.preventDefault();
      this.#remove(rows[at]);
      say(`Removed ${rows[at].name}`);
    }
  }
}

const STATES = { waiting: "waiting", asking: "asking", busy: "busy", offline: "offline", locked: "needs a key" };

function best(entry, number) {
  if (entry.answer !== null) {
    const { class: name, probability } = entry.answer.classes[0];
    return el(
      "span",
      { class: `best c${number}` },
      el("b", { title: name }, name),
      el("span", {}, percent(probability)),
    );
  }
  if (entry.state === "failed") return el("span", { class: "best wrong" }, el("span", {}, headline(entry.problem)));
  return el("span", { class: `best quiet ${entry.state}` }, STATES[entry.state]);
}

async function loads(url) {
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
    return true;
  } catch {
    return false;
  }
}

/** A file's type and size. */
export const fileFacts = (file) =>
  [file.type.replace("image/", "").toUpperCase(), fileSize(file.size)].filter(Boolean).join(", ");
