// The origin of a bundle: everything that GET /models reports.

import { counted, el } from "./dom.js";

// On a page this wide the recipe is beside the facts; folded, it would leave half of the page blank.
const ROOMY = matchMedia("(min-width: 66rem)");

const SHARES = /top\d|accuracy|recall|precision|data_wait/;

/** The facts of one model; the rest of its provenance is folded. */
export function origin(model, number, { alone, tryOut }) {
  const { input, metrics = {}, provenance = {}, runtime = {} } = model;
  const { recipe, versions, class_counts: counts, datasets = {}, dataset_digests: digests = {}, ...rest } = provenance;
  const pipeline = [input?.steps, input?.fit].filter(Boolean).join(" | ");
  const facts = [
    ["Bundle", el("code", {}, model.bundle_id)],
    ["Model", el("code", {}, model.model)],
    ["Classes", classes(model.classes, counts)],
    input?.size?.[0]
      ? [
          "Input",
          `${input.size[1]} × ${input.size[0]}, ${input.channels === 1 ? "grey" : counted(input.channels, "channel")}`,
        ]
      : null,
    pipeline
      ? [
          "Its own steps",
          el(
            "div",
            {},
            el("code", {}, pipeline),
            " ",
            el("button", { type: "button", class: "plain", onclick: () => tryOut(pipeline) }, "Try them above"),
          ),
        ]
      : null,
    [
      "Runs on",
      [
        runtime.name,
        runtime.device,
        runtime.batch_size ? `batches of ${runtime.batch_size}` : null,
        runtime.threads ? counted(runtime.threads, "thread") : null,
      ]
        .filter(Boolean)
        .join(", "),
    ],
    ...Object.entries(datasets).map(([name, uri]) => [`Data, ${name}`, dataset(uri, digests[name])]),
    ...Object.entries(rest).map(([name, value]) => [label(name), plain(name, value)]),
  ].filter(Boolean);
  return el(
    "article",
    { class: `facts c${number}`, "aria-label": `Where ${model.name} came from` },
    el("h3", {}, el("span", { class: "swatch" }), model.name),
    el(
      "div",
      { class: "facts-body" },
      el(
        "div",
        {},
        measures(metrics),
        el("dl", {}, ...facts.flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)])),
      ),
      el(
        "div",
        {},
        typeof recipe === "string" ? folded("Recipe", el("pre", {}, recipe), alone && ROOMY.matches) : null,
        versions && typeof versions === "object" ? folded("Versions", list(versions)) : null,
        Object.keys(metrics).length > 0 ? folded("All metrics", list(metrics)) : null,
      ),
    ),
  );
}

// The validation metrics at the end of training.
function measures(metrics) {
  const shown = Object.entries(metrics).filter(([name, value]) => name.startsWith("val_") && typeof value === "number");
  if (shown.length === 0) return null;
  return el(
    "dl",
    { class: "measures" },
    ...shown.map(([name, value]) =>
      el("div", {}, el("dt", {}, label(name.slice(4))), el("dd", {}, number(name, value))),
    ),
  );
}

function classes(names, counts) {
  const texts = names.map((name) =>
    counts?.[name] === undefined ? name : `${name} (${counts[name].toLocaleString("en")})`,
  );
  if (names.length <= 12) return texts.join(", ");
  return folded(counted(names.length, "class", "classes"), el("p", { class: "all-classes" }, texts.join(", ")));
}

function dataset(uri, digest) {
  return el(
    "div",
    {},
    el("code", {}, String(uri)),
    digest ? el("code", { class: "quiet digest", title: "digest of its manifest" }, String(digest)) : null,
  );
}

function plain(name, value) {
  if (value !== null && typeof value === "object") return list(value);
  return /digest|commit|id$/.test(name)
    ? el("code", {}, String(value))
    : typeof value === "number"
      ? [value.toLocaleString("en"), UNITS[name]].filter(Boolean).join(" ")
      : String(value ?? "none");
}

function list(values) {
  return el(
    "dl",
    { class: "inner" },
    ...Object.entries(values).flatMap(([name, value]) => [
      el("dt", {}, name),
      el("dd", {}, typeof value === "object" ? JSON.stringify(value) : String(value)),
    ]),
  );
}

const folded = (title, content, open = false) => el("details", { open }, el("summary", {}, title), content);

const LABELS = { git_commit: "Commit", train_pictures: "Trained on", seconds: "Training time" };
const UNITS = { train_pictures: "pictures", seconds: "s" };

const label = (name) => {
  if (name in LABELS) return LABELS[name];
  const words = name.replaceAll("_", " ").replace(/top(\d)/, "top-$1");
  return words[0].toUpperCase() + words.slice(1);
};

function number(name, value) {
  if (typeof value !== "number") return value;
  if (SHARES.test(name) && value >= 0 && value <= 1) return `${(value * 100).toFixed(2)} %`;
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
}
