import { endpoint, facts } from "./facts.js";
import { token } from "./token.js";

const TIMEOUT = 30_000;
const PAUSES = [500, 1000, 2000, 4000];
const BUSY = new Set([429, 502, 503]);

/** Why an image has no answer: a code of ours or the server's, its words, and its response. */
export class Failure extends Error {
  constructor(code, message = "", response = null) {
    super(message);
    this.code = code;
    this.status = response?.status;
    this.retryAfter = Number(response?.headers.get("Retry-After")) || 0;
  }
}

/**
 * Classify one image; a busy server is asked again after longer and longer pauses, none shorter
 * than its Retry-After.
 *
 * @param file an image.
 * @param tta the test-time augmentation.
 * @param signal aborts; the promise is then rejected with its reason.
 * @param onBusy called before each pause.
 * @returns the answer, and `milliseconds`, the duration of the request that got it.
 * @throws {Failure}
 */
export async function predict(file, tta, signal, onBusy) {
  if (file.size > facts.max_image_bytes) throw new Failure("image_too_large");
  const body = await file.arrayBuffer().catch(() => {
    throw new Failure("unreadable_file");
  });
  for (const pause of PAUSES) {
    try {
      return await send(body, tta, signal);
    } catch (failure) {
      if (!BUSY.has(failure.status)) throw failure;
      onBusy();
      await sleep(Math.max(pause * (0.5 + Math.random()), 1000 * failure.retryAfter), signal);
      signal.throwIfAborted();
    }
  }
  return send(body, tta, signal);
}

async function send(body, tta, signal) {
  const headers = {
    Accept: "application/json",
    "Content-Type": "application/octet-stream",
    "X-Classify-TTA": tta,
  };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  const limit = AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT)]);
  const start = performance.now();
  let response, text;
  try {
    response = await fetch(endpoint, { method: "POST", headers, body, signal: limit });
    text = await response.text();
  } catch (error) {
    signal.throwIfAborted();
    throw new Failure(error.name === "TimeoutError" ? "timeout" : "network");
  }
  const milliseconds = performance.now() - start;
  const content = parse(text);
  if (!response.ok || !content?.predictions) throw refusal(response, content);
  return { ...content, milliseconds };
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
  if (content?.error) return new Failure(content.error.code, content.error.message, response);
  if (status === 401 || status === 403 || content?.type === "InvalidKeyException") {
    return new Failure("unauthorized");
  }
  return new Failure(`http_${status}`, content?.message, response);
}

/** Wait, at most until the signal aborts. */
function sleep(milliseconds, signal) {
  return new Promise((wake) => {
    setTimeout(wake, milliseconds);
    signal.addEventListener("abort", wake, { once: true });
  });
}
