// Requests to the server, its refusals, and the key, which only this module holds.

/** The server refused the request; `problem` is its problem+json (RFC 9457). */
export class Refusal extends Error {
  constructor(problem, status, retryAfterS = null) {
    super(problem.detail || problem.title);
    this.problem = problem;
    this.status = status;
    this.retryAfterS = retryAfterS;
  }

  /** Whether the same request may succeed a little later. */
  get busy() {
    return this.status === 429 || this.status === 503;
  }
}

/** The server does not answer. */
export class Offline extends Error {}

/** The server requires a key, and the user entered none. */
export class NoKey extends Error {}

const DEFAULT_WAIT_S = 2;
const LONGEST_WAIT_S = 60;

let key = null;
let pendingKey = null;
let askForKey = async () => null;

/** @param {(wrong: boolean) => Promise<string|null>} ask shows a form; null: the user entered no key. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

export const hasKey = () => key !== null;

export function forgetKey() {
  key = null;
}

export const listModels = async () => (await request("models")).json().then((body) => body.models);

export const listSteps = async () => (await request("steps")).json();

/** The canonical text of a pipeline. Throws a Refusal whose problem has `offset` and `length` of the mistake. */
export const checkSteps = async (text, signal) =>
  (await request(`pipeline?steps=${encodeURIComponent(text)}`, { signal })).json();

/** One model's answer for one picture: `{bundleId, timing, ...predictions[0]}`. */
export async function predict(model, file, { topK, explain }) {
  const path = `models/${encodeURIComponent(model)}/predict?top_k=${topK}${explain ? "&explain=true" : ""}`;
  const answer = await (await request(path, post(file))).json();
  return { bundleId: answer.bundle_id, timing: answer.timing, ...answer.predictions[0] };
}

/** A picture as the model sees it, as a PNG. */
export const modelView = async (model, file, signal) =>
  (
    await patiently(() => request(`models/${encodeURIComponent(model)}/view`, { ...post(file), signal }), signal)
  ).blob();

/** A drawing of what happens inside a model, as a PNG; `className` "" is the most probable class. */
export const lookInside = async (model, file, part, className, signal) => {
  const query = `part=${part}${className ? `&class=${encodeURIComponent(className)}` : ""}`;
  const path = `models/${encodeURIComponent(model)}/inside?${query}`;
  return (await patiently(() => request(path, { ...post(file), signal }), signal)).blob();
};

/** A picture after steps, as a PNG. */
export const preview = async (steps, file, signal) =>
  (
    await patiently(() => request(`preview?steps=${encodeURIComponent(steps)}`, { ...post(file), signal }), signal)
  ).blob();

/** Whether the server answers. */
export async function alive() {
  try {
    return (await fetch("healthz", { cache: "no-store", credentials: "omit" })).ok;
  } catch {
    return false;
  }
}

function post(file) {
  return {
    method: "POST",
    body: file,
    headers: { "Content-Type": file.type.startsWith("image/") ? file.type : "application/octet-stream" },
  };
}

async function request(path, options = {}) {
  for (;;) {
    const used = key;
    const headers = { ...options.headers, ...(used ? { Authorization: `Bearer ${used}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw await whyNoAnswer(options.body);
    }
    if (response.status === 401) {
      if (key === used) await newKey(used !== null);
      continue;
    }
    if (response.ok) return response;
    throw await refusal(response);
  }
}

// A server that refuses a large upload may close the connection before the browser has read the reason.
async function whyNoAnswer(body) {
  if (!body || !(await alive())) return new Offline();
  return new Refusal(
    {
      title: "The upload was interrupted",
      detail: "The server closed the connection before the upload ended, or the file cannot be read any more.",
      how: "Try a smaller file, or choose the file again if it has changed on disk.",
    },
    0,
  );
}

async function refusal(response) {
  let problem = null;
  try {
    problem = await response.json();
  } catch {
    // A proxy in between may answer with something other than JSON.
  }
  if (problem === null || typeof problem !== "object" || !problem.title) {
    problem = { title: `The server answers ${response.status} ${response.statusText}`.trim() };
  }
  const after = Number(response.headers.get("Retry-After") ?? NaN);
  return new Refusal(
    problem,
    response.status,
    Number.isFinite(after) ? Math.min(Math.max(after, 0), LONGEST_WAIT_S) : DEFAULT_WAIT_S,
  );
}

// Shows the form once, however many requests are refused at the same time.
async function newKey(wrong) {
  pendingKey ??= askForKey(wrong).finally(() => {
    pendingKey = null;
  });
  const entered = await pendingKey;
  if (entered === null) throw new NoKey();
  key = entered;
}

// Retries silently while the server is busy: for pictures shown beside the answer.
async function patiently(ask, signal, tries = 8) {
  for (let left = tries; ; left -= 1) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof Refusal) || !error.busy || left <= 1) throw error;
      await new Promise((resolve) => setTimeout(resolve, Math.max(error.retryAfterS, 0.2) * 1000));
      signal?.throwIfAborted();
    }
  }
}
