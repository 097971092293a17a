// The page: holds the selection and draws it.

import { NoKey, Offline, Refusal, listModels } from "./api.js";
import { byId, counted, el, percent, say } from "./dom.js";
import { InsidePanel } from "./inside.js";
import { askForKeys } from "./key.js";
import { origin } from "./origin.js";
import { Picture, PictureList, fileFacts, takePictures } from "./pictures.js";
import { RequestQueue } from "./request_queue.js";
import { Panel, agreement } from "./results.js";
import { StepsBox } from "./steps.js";

const TOP = [3, 5, 10, 25];
const STARTING_MS = 3000;

const TABS = ["answer", "inside"];

const state = { models: [], pictures: [], selected: null, tab: "answer" };
let panels = [];
// The number of classes last chosen, kept when a model with fewer classes is selected in between; Infinity: all.
let wantedTop = 5;
let fetching = null;

const first = byId("first");
const second = byId("second");
const top = byId("top");
const explain = byId("explain");

const requests = new RequestQueue(
  (picture, model) => {
    if (!state.pictures.includes(picture)) return;
    list.update(picture, picture === state.selected, entriesOf(picture));
    if (picture !== state.selected) return;
    drawPanels();
    announce(picture, model);
  },
  (offline) => {
    drawConnection(offline);
    if (!offline) {
      start();
      steps.again();
    }
  },
);
const steps = new StepsBox(() => requests.lost());
const list = new PictureList({ choose: select, remove, clear: () => state.pictures.slice().forEach(remove) });

const model = (name) => state.models.find((one) => one.name === name);
const chosen = () => [first.value, second.value].map(model).filter(Boolean);
const topK = () => Number(top.value);
const entriesOf = (picture) => chosen().map(({ name }) => ({ model: name, entry: requests.entry(picture, name) }));

function add(files) {
  const added = files.map((file) => new Picture(file));
  if (added.length === 0) return;
  state.pictures.push(...added);
  say(`${counted(added.length, "picture")} added`);
  select(added[0]);
}

function remove(picture) {
  const at = state.pictures.indexOf(picture);
  state.pictures.splice(at, 1);
  requests.forget(picture);
  picture.close();
  const next = state.pictures[Math.min(at, state.pictures.length - 1)] ?? null;
  select(state.selected === picture ? next : state.selected);
  if (next !== null) list.focus(next);
  else byId("files").focus();
}

function select(picture) {
  state.selected = picture;
  document.body.classList.toggle("empty", picture === null);
  list.draw(state.pictures, picture, entriesOf);
  byId("result").hidden = picture === null;
  steps.show(picture);
  makePanels();
  ask();
}

// The selected picture comes first; only it gets Grad-CAM, which costs a second pass.
function ask() {
  const order =
    state.selected === null ? [] : [state.selected, ...state.pictures.filter((one) => one !== state.selected)];
  requests.want(
    order.flatMap((picture) =>
      chosen().map(({ name, explain: can }) => ({
        picture,
        model: name,
        topK: topK(),
        explain: can && explain.checked && picture === state.selected,
      })),
    ),
  );
}

function makePanels() {
  for (const panel of panels) panel.close();
  const picture = state.selected;
  panels =
    picture === null
      ? []
      : chosen().map((one, number) => {
          if (state.tab === "inside") return new InsidePanel(picture, one, number, { lost: () => requests.lost() });
          const again = () => requests.again(picture, one.name);
          return new Panel(picture, one, number, { again, busyUntil: () => requests.busyUntil(one.name) });
        });
  byId("panels").replaceChildren(...panels.map((panel) => panel.element));
  byId("panels").classList.toggle("two", panels.length > 1);
  byId("result-title").textContent = picture?.name ?? "";
  byId("result-facts").textContent = "";
  drawPanels();
}

function drawPanels() {
  if (state.selected === null) return;
  const entries = entriesOf(state.selected);
  panels.forEach((panel, number) => panel.draw(entries[number].entry, { explain: explain.checked, topK: topK() }));
  const size = entries.map(({ entry }) => entry.answer).find((answer) => answer?.width);
  byId("result-facts").textContent = [size ? `${size.width} × ${size.height}` : null, fileFacts(state.selected.file)]
    .filter(Boolean)
    .join(", ");
  const agree = agreement(entries);
  byId("agree").hidden = agree === "" || state.tab === "inside";
  byId("agree").textContent = agree;
}

function announce(picture, name) {
  const entry = requests.entry(picture, name);
  if (entry.state === "done") {
    const best = entry.answer.classes[0];
    say(`${picture.name}, ${name}: ${best.class}, ${percent(best.probability)}`);
  } else if (entry.state === "failed") say(`${picture.name}, ${name}: ${entry.problem.detail ?? entry.problem.title}`);
  else if (entry.state === "busy") say(`${name} is busy; retrying soon`);
}

function drawConnection(offline) {
  const notice = byId("notice");
  notice.hidden = !offline;
  notice.textContent = offline
    ? "The server does not answer. This page retries every 2 seconds and continues automatically."
    : "";
  if (offline) drawServer("offline", "offline");
}

function drawServer(kind, text) {
  byId("server").className = `server ${kind}`;
  byId("server").textContent = text;
}

function drawModels() {
  const names = state.models.map(({ name }) => name);
  const option = (name) => el("option", { value: name }, name);
  const keep = [first.value, second.value];
  first.replaceChildren(...names.map(option));
  second.replaceChildren(el("option", { value: "" }, "none"), ...names.map(option));
  first.disabled = names.length === 0;
  second.closest("label").hidden = names.length < 2;
  if (names.includes(keep[0])) first.value = keep[0];
  if (names.includes(keep[1])) second.value = keep[1];
  drawChoice();
}

// Draws what depends on the chosen models: the number of classes, Grad-CAM and their origin.
function drawChoice() {
  const models = chosen();
  for (const option of second.options) option.disabled = option.value !== "" && option.value === first.value;
  const most = Math.max(1, ...models.map(({ classes }) => classes.length));
  const numbers = TOP.filter((number) => number < most);
  top.replaceChildren(
    ...numbers.map((number) => el("option", { value: number }, String(number))),
    el("option", { value: most }, `all ${most}`),
  );
  top.value = numbers.includes(wantedTop) ? wantedTop : most;
  const can = models.some((one) => one.explain);
  explain.disabled = !can;
  byId("strength").closest("label").hidden = !(can && explain.checked);
  const [one] = models;
  byId("knows").textContent = one === undefined ? "" : knows(one);
  byId("origins").replaceChildren(
    ...models.map((each, number) => origin(each, number, { alone: models.length === 1, tryOut })),
  );
  byId("origins").classList.toggle("two", models.length > 1);
}

function knows({ name, classes }) {
  const some = classes.slice(0, 8).join(", ");
  return `${name} knows ${counted(classes.length, "class", "classes")}: ${some}${classes.length > 8 ? ", …" : "."}`;
}

function tryOut(pipeline) {
  steps.write(pipeline);
  byId("steps").focus();
}

// Loads the models; calls during a load share its result.
function start() {
  fetching ??= load().finally(() => {
    fetching = null;
  });
  return fetching;
}

async function load() {
  let all;
  try {
    all = await listModels();
    await steps.start();
  } catch (error) {
    return notLoaded(error);
  }
  // A model that is starting may not have reported its classes yet.
  const known = all.filter(({ classes }) => classes !== undefined);
  const ready = all.filter((one) => one.ready).length;
  if (ready < all.length || ready === 0) setTimeout(start, STARTING_MS);
  if (all.length === 0) drawServer("waiting", "this server has no models");
  else if (ready < all.length) drawServer("waiting", `${ready} of ${counted(all.length, "model")} ready`);
  else drawServer("ready", `${counted(ready, "model")} ready`);
  requests.unlock();
  if (JSON.stringify(known) === JSON.stringify(state.models)) return;
  state.models = known;
  drawModels();
  select(state.selected);
}

function notLoaded(error) {
  if (error instanceof Offline) requests.lost();
  else if (error instanceof NoKey) drawServer("waiting", "needs a key");
  else if (error instanceof Refusal) {
    drawServer("waiting", error.busy ? "starting" : error.message);
    setTimeout(start, Math.max(error.retryAfterS ?? 5, 1) * 1000);
  } else throw error;
}

function showTab(tab) {
  state.tab = tab;
  for (const name of TABS) {
    const button = byId(`tab-${name}`);
    button.setAttribute("aria-selected", String(name === tab));
    button.tabIndex = name === tab ? 0 : -1;
  }
  byId("panels").setAttribute("aria-labelledby", `tab-${tab}`);
  makePanels();
}

function choiceChanged() {
  drawChoice();
  select(state.selected);
}

for (const name of TABS) {
  byId(`tab-${name}`).addEventListener("click", () => showTab(name));
  byId(`tab-${name}`).addEventListener("keydown", (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const other = TABS[(TABS.indexOf(name) + 1) % TABS.length];
    showTab(other);
    byId(`tab-${other}`).focus();
  });
}
first.addEventListener("change", () => {
  if (second.value === first.value) second.value = "";
  choiceChanged();
});
second.addEventListener("change", choiceChanged);
top.addEventListener("change", () => {
  wantedTop = TOP.includes(topK()) ? topK() : Infinity;
  drawPanels();
  ask();
});
explain.addEventListener("change", () => {
  drawChoice();
  drawPanels();
  ask();
});
byId("strength").addEventListener("input", (event) =>
  byId("panels").style.setProperty("--heat", event.target.value / 100),
);
byId("settings").addEventListener("submit", (event) => event.preventDefault());

takePictures(add);
askForKeys(() => {
  requests.unlock();
  start();
  steps.again();
});
select(null);
start();
