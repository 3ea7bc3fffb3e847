import { endpoint } from "./facts.js";
import { Failure } from "./failure.js";
import { token } from "./token.js";

const TIMEOUT = 30_000;

/**
 * Send images in one request.
 *
 * @param setup the model, version and test-time augmentation to ask for.
 * @param images encoded images, ArrayBuffers.
 * @param signal aborts; the promise is then rejected with its reason.
 * @returns in the images' order an answer, or the Failure of that image alone.
 * @throws {Failure} of the request as a whole.
 */
export async function post(setup, images, signal) {
  const headers = { Accept: "application/json", "X-Classify-TTA": setup.tta };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  if (images.length === 1) headers["Content-Type"] = "application/octet-stream";
  const body = images.length === 1 ? images[0] : form(images);
  const limit = AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT)]);
  let response, text;
  try {
    response = await fetch(endpoint(setup), { method: "POST", headers, body, signal: limit });
    text = await response.text();
  } catch (error) {
    signal.throwIfAborted();
    throw new Failure(error.name === "TimeoutError" ? "timeout" : "network");
  }
  const content = parse(text);
  const outcomes = Array.isArray(content) ? content : [content];
  const isWhole = outcomes.length === images.length && outcomes.every(isOutcome);
  if (!response.ok || !isWhole) throw refusal(response, content);
  return outcomes.map(({ error, ...answer }) =>
    error ? new Failure(error.code, error.message) : answer,
  );
}

function form(images) {
  const data = new FormData();
  for (const image of images) data.append("data", new Blob([image]));
  return data;
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

/** The archive's and nginx's errors have a code; TorchServe's, the name of an exception. */
function refusal(response, content) {
  const { status } = response;
  const reply = { status, retryAfter: Number(response.headers.get("Retry-After")) };
  if (content?.error) return new Failure(content.error.code, content.error.message, reply);
  if (status === 401 || status === 403 || content?.type === "InvalidKeyException") {
    return new Failure("unauthorized", "", reply);
  }
  return new Failure(`http_${status}`, content?.message, reply);
}
