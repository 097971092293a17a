// The queue of requests: which picture goes to which model, retries, and the answers.

import { NoKey, Offline, Refusal, alive, predict } from "./api.js";

const MAX_RUNNING = 4;
const TRIES = 10;
const PING_MS = 2000;

/**
 * The state of one picture at one model.
 * @typedef {Object} Entry
 * @property {"waiting"|"asking"|"busy"|"offline"|"locked"|"done"|"failed"} state
 * @property {Object|null} answer kept while a longer one is requested
 * @property {Object|null} problem of a failed request
 * @property {Object|null} asked the options of the request for `answer`
 * @property {number} refused number of consecutive refusals by a busy model
 */

/** Sends the wanted requests, most important first; waits while a model is busy or the server does not answer. */
export class RequestQueue {
  #entries = new Map();
  #wanted = [];
  #running = 0;
  #busyUntil = new Map();
  #offline = false;
  #locked = false;
  #changed;
  #connection;

  /**
   * @param {(picture: Object, model: string) => void} changed called when an entry changes its state
   * @param {(offline: boolean) => void} connection called when the server is lost or is back
   */
  constructor(changed, connection) {
    this.#changed = changed;
    this.#connection = connection;
  }

  /** @returns {Entry} */
  entry(picture, model) {
    const name = `${picture.id} ${model}`;
    if (!this.#entries.has(name)) {
      this.#entries.set(name, { state: "waiting", answer: null, problem: null, asked: null, refused: 0 });
    }
    return this.#entries.get(name);
  }

  /** The time of the next request to a busy model, in milliseconds of `Date.now()`. */
  busyUntil(model) {
    return this.#busyUntil.get(model) ?? 0;
  }

  /** Replaces the wanted requests: `{picture, model, topK, explain}`, in order of importance. */
  want(wanted) {
    this.#wanted = wanted;
    this.#next();
  }

  /** Forgets a picture. */
  forget(picture) {
    for (const name of this.#entries.keys()) {
      if (name.startsWith(`${picture.id} `)) this.#entries.delete(name);
    }
  }

  /** Retries now: after a failure, before a busy model's time, or after a key was entered. */
  again(picture, model) {
    const entry = this.entry(picture, model);
    entry.refused = 0;
    if (entry.state === "failed") this.#set({ picture, model }, entry, "waiting");
    this.#busyUntil.delete(model);
    this.unlock();
  }

  /** Continues after a key was entered, or so that the form is shown again. */
  unlock() {
    this.#locked = false;
    this.#next();
  }

  /** Polls the server until it answers again. */
  async lost() {
    if (this.#offline) return;
    this.#offline = true;
    this.#connection(true);
    this.#mark("offline");
    while (!(await alive())) await new Promise((resolve) => setTimeout(resolve, PING_MS));
    this.#offline = false;
    this.#connection(false);
    this.#next();
  }

  #next() {
    if (this.#offline) return this.#mark("offline");
    if (this.#locked) return this.#mark("locked");
    for (const job of this.#wanted) {
      if (this.#running >= MAX_RUNNING) return;
      const entry = this.entry(job.picture, job.model);
      if (entry.state === "asking" || entry.state === "failed" || enough(entry, job)) continue;
      if (this.busyUntil(job.model) > Date.now()) this.#set(job, entry, "busy");
      else this.#ask(job, entry);
    }
  }

  async #ask(job, entry) {
    this.#running += 1;
    this.#set(job, entry, "asking");
    try {
      entry.answer = await predict(job.model, job.picture.file, job);
      entry.asked = { topK: job.topK, explain: job.explain };
      entry.refused = 0;
      this.#set(job, entry, "done");
    } catch (error) {
      this.#failed(job, entry, error);
    } finally {
      this.#running -= 1;
      this.#next();
    }
  }

  #failed(job, entry, error) {
    if (error instanceof Offline) {
      this.#set(job, entry, "offline");
      this.lost();
    } else if (error instanceof NoKey) {
      this.#locked = true;
      this.#set(job, entry, "locked");
    } else if (error instanceof Refusal && error.busy && entry.refused + 1 < TRIES) {
      entry.refused += 1;
      const wait = Math.max(error.retryAfterS * 1000, 250);
      this.#busyUntil.set(job.model, Date.now() + wait);
      this.#set(job, entry, "busy");
      setTimeout(() => this.#next(), wait + 20);
    } else {
      entry.problem = error instanceof Refusal ? error.problem : { title: "The page failed", detail: String(error) };
      this.#set(job, entry, "failed");
    }
  }

  #mark(state) {
    for (const job of this.#wanted) {
      const entry = this.entry(job.picture, job.model);
      if (entry.state !== "asking" && entry.state !== "failed" && !enough(entry, job)) this.#set(job, entry, state);
    }
  }

  #set(job, entry, state) {
    if (entry.state === state && state !== "done") return;
    entry.state = state;
    this.#changed(job.picture, job.model);
  }
}

function enough({ answer, asked }, { topK, explain }) {
  if (answer === null) return false;
  return (asked.topK >= topK || answer.classes.length < asked.topK) && (asked.explain || !explain);
}
