import { endpoint, factsOf } from "./facts.js";
import { Failure } from "./failure.js";
import { NAMED } from "./language.js";
import { token } from "./token.js";

const TIMEOUT = 30_000;
/** The form's boundary, which no image contains: 128 random bits, new at each load of the page. */
const EDGE = [...crypto.getRandomValues(new Uint32Array(4))].join("-");

/**
 * Send images in one request.
 *
 * @param setup the model, version and test-time augmentation to ask for.
 * @param images encoded images, ArrayBuffers.
 * @param signal aborts; the promise is then rejected with its reason.
 * @param options further options of the server, by the names of their headers.
 * @returns for each image, in order, its answer or its own Failure.
 * @throws {Failure} if the request fails as a whole.
 */
export async function post(setup, images, signal, options = {}) {
  const headers = {
    ...common(),
    "X-Classify-TTA": setup.tta,
    // Answers contain both names, so nothing is asked again when the person changes the language.
    "X-Classify-Language": NAMED,
    ...options,
  };
  const isOne = images.length === 1;
  headers["Content-Type"] = isOne
    ? "application/octet-stream"
    : `multipart/form-data; boundary=${EDGE}`;
  const body = isOne ? images[0] : form(images);
  // AbortSignal.timeout would keep the images in memory until the time is over.
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(new DOMException("", "TimeoutError")), TIMEOUT);
  const either = AbortSignal.any([signal, limit.signal]);
  let response, text;
  try {
    response = await fetch(endpoint(setup), { method: "POST", headers, body, signal: either });
    text = await response.text();
  } catch (error) {
    signal.throwIfAborted();
    throw new Failure(error.name === "TimeoutError" ? "timeout" : "network");
  } finally {
    clearTimeout(timer);
  }
  const content = parse(text);
  const outcomes = Array.isArray(content) ? content : [content];
  const isWhole = outcomes.length === images.length && outcomes.every(isOutcome);
  if (!response.ok || !isWhole) throw refusal(response, content, headers);
  return outcomes.map(({ error, ...answer }) =>
    error ? new Failure(error.code, error.message) : withEnglish(answer, setup),
  );
}

/** What models have said about themselves, promises by the path that was asked and what for. */
const described = new Map();

/**
 * Ask what a model says about itself, once.
 *
 * @param wanted `card` or `classes`; see `visionserve.inputs`.
 * @throws {Failure}
 */
export function describe(setup, wanted) {
  const key = JSON.stringify([setup.model, setup.version, wanted]);
  if (!described.has(key)) {
    const asked = askAbout(setup, wanted);
    described.set(key, asked);
    asked.catch(() => described.delete(key));
  }
  return described.get(key);
}

async function askAbout(setup, wanted) {
  const headers = { ...common(), "X-Classify-Describe": wanted };
  const response = await fetch(endpoint(setup), { headers, cache: "no-store" }).catch(() => {
    throw new Failure("network");
  });
  const content = parse(await response.text());
  if (!response.ok || content === null) throw refusal(response, content, headers);
  return content;
}

/**
 * Send a report of a wrong answer; see `visionserve.sampling`.
 *
 * @returns the HTTP status.
 */
export async function sendReport(setup, body) {
  const response = await fetch(endpoint(setup), {
    method: "POST",
    headers: { ...common(), "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(TIMEOUT),
  });
  return response.status;
}

function common() {
  const authorization = token() ? { Authorization: `Bearer ${token()}` } : {};
  return { Accept: "application/json", ...authorization };
}

/** Name classes in English, too, where the model has such names: few do. */
function withEnglish(answer, setup) {
  const { names } = factsOf(setup);
  const predictions = answer.predictions.map((prediction) =>
    names && Object.hasOwn(names, prediction.label)
      ? { ...prediction, english: names[prediction.label] }
      : prediction,
  );
  return { ...answer, predictions };
}

/**
 * Join images to a form (RFC 7578). FormData would pass each of them to another process of the
 * browser, which takes longer than classifying it.
 */
function form(images) {
  const head = `--${EDGE}\r\nContent-Disposition: form-data; name="data"; filename="image"\r\n\r\n`;
  const parts = images.flatMap((image) => [bytes(head), new Uint8Array(image), bytes("\r\n")]);
  parts.push(bytes(`--${EDGE}--\r\n`));
  const body = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let position = 0;
  for (const part of parts) {
    body.set(part, position);
    position += part.length;
  }
  return body;
}

function bytes(text) {
  return new TextEncoder().encode(text);
}

function isOutcome(entry) {
  return Boolean(entry?.predictions?.length || entry?.error);
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Read the code from an error of the archive or nginx; TorchServe's errors name an exception. */
function refusal(response, content, { Authorization }) {
  const { status } = response;
  const reply = { status, retryAfter: Number(response.headers.get("Retry-After")) };
  if (content?.error) return new Failure(content.error.code, content.error.message, reply);
  if (status === 401 || status === 403 || content?.type === "InvalidKeyException") {
    return new Failure(Authorization ? "token_refused" : "unauthorized", "", reply);
  }
  return new Failure(`http_${status}`, content?.message, reply);
}
