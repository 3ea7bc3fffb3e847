import { factsOf } from "./facts.js";
import { Failure, TOKEN_FAULTS } from "./failure.js";
import { post } from "./server.js";
import { token } from "./token.js";
import { hold, letGo } from "./trouble.js";

const CONCURRENCY = 2;
/** Concurrent requests while answers come from the cache, which costs the models nothing. */
const CACHED_CONCURRENCY = 4;
/** How many images share a request then, at least; and over how many requests all are spread. */
const CACHED_IMAGES = 8;
const CACHED_REQUESTS = 16;
const MOST_IMAGES = 32;
const MOST_BYTES = 6 * 2 ** 20;
/** Desired duration of a request, in milliseconds: overhead is small, and so is the wait. */
const DURATION = 300;
/** Pauses before each further try, in milliseconds; the last one is repeated. */
const PAUSES = [500, 1000, 2000, 4000, 8000, 15_000];
/** Failures that other images of the request may have caused: the image is sent again, alone. */
const SHARED_FAULTS = new Set(["too_much_work", "request_too_slow", "internal_error"]);

/** The pace that stands for answers from the cache. */
const CACHED = 0;

const waiting = [];
const paces = new Map();
let running = 0;
/** The most images that waited since none did. */
let longest = 0;

/**
 * Classify an image, in order of arrival. Images for one setup share a request if that is faster:
 * as many as take DURATION at the pace of the previous requests. Answers from the server's cache
 * take it so little that there are at most CACHED_REQUESTS for all images that wait: nginx lets a
 * client send 20 in a second.
 *
 * A server that is busy or away is asked again after longer and longer pauses, none shorter than
 * its Retry-After, until it answers or the person stops it. All waiting images then fail together,
 * as they do for want of a token.
 *
 * @param picture an image.
 * @param setup see `post`.
 * @param signal aborts; the promise is then rejected with its reason.
 * @param onState called with `running`, and with `waiting` while the server cannot be asked.
 * @returns the answer, with `milliseconds`, its request's duration divided by the number of
 *   images in it, and `together`, that number.
 * @throws {Failure}
 */
export function ask(picture, setup, signal, onState) {
  return new Promise((resolve, reject) => {
    waiting.push({ picture, setup, signal, onState, resolve, reject });
    longest = Math.max(longest, waiting.length);
    pump();
  });
}

/** Start requests after the current call, so that images added together can share one. */
function pump() {
  queueMicrotask(() => {
    if (waiting.length === 0) longest = 0;
    while (waiting.length > 0 && running < concurrency(waiting[0].setup)) {
      const jobs = take();
      if (jobs.length === 0) continue;
      running += 1;
      run(jobs).finally(() => {
        running -= 1;
        pump();
      });
    }
  });
}

function concurrency(setup) {
  return paces.get(setup.key) === CACHED ? CACHED_CONCURRENCY : CONCURRENCY;
}

/** Take the first waiting image, and further ones for the same request. */
function take() {
  const first = waiting.shift();
  if (isOver(first)) return [];
  const jobs = [first];
  const most = first.alone ? 1 : size(first.setup);
  let bytes = first.picture.size;
  for (let index = 0; index < waiting.length && jobs.length < most; ) {
    const job = waiting[index];
    const fits = job.setup.key === first.setup.key && !job.alone;
    if (isOver(job)) waiting.splice(index, 1);
    else if (fits && bytes + job.picture.size <= MOST_BYTES) {
      bytes += job.picture.size;
      jobs.push(...waiting.splice(index, 1));
    } else if (fits) break;
    else index += 1;
  }
  return jobs;
}

function isOver({ signal, reject }) {
  if (signal.aborted) reject(signal.reason);
  return signal.aborted;
}

function size(setup) {
  const pace = paces.get(setup.key);
  if (pace === undefined) return 1;
  const cachedSize = Math.max(CACHED_IMAGES, Math.ceil(longest / CACHED_REQUESTS));
  const few = pace === CACHED ? cachedSize : Math.floor(DURATION / pace);
  return Math.max(1, Math.min(few, MOST_IMAGES, factsOf(setup).max_images));
}

async function run(jobs) {
  const read = await Promise.all(jobs.map(bytesOf));
  const images = read.filter(Boolean);
  const asked = jobs.filter((_, index) => read[index]);
  if (asked.length === 0) return;
  const { signal, release } = whileWanted(asked);
  const sentWith = token();
  try {
    const [outcomes, milliseconds] = await patiently(asked, signal, () =>
      timed(asked, images, signal),
    );
    for (const [index, outcome] of outcomes.entries()) settle(asked, index, outcome, milliseconds);
  } catch (error) {
    if (TOKEN_FAULTS.has(error.code) && sentWith !== token()) waiting.unshift(...asked);
    else fail(asked, error);
  } finally {
    release();
  }
}

/** Send images, and learn the pace; refused images count, as they took the server time, too. */
async function timed(jobs, images, signal) {
  const start = performance.now();
  const pace = () => (performance.now() - start) / jobs.length;
  const [{ setup }] = jobs;
  try {
    const outcomes = await post(setup, images, signal);
    paces.set(setup.key, outcomes.every(({ cached }) => cached) ? CACHED : pace());
    return [outcomes, pace()];
  } catch (error) {
    if (error instanceof Failure && !error.trouble) paces.set(setup.key, pace());
    throw error;
  }
}

async function bytesOf({ picture, setup, onState, reject }) {
  if (picture.size > factsOf(setup).max_image_bytes) return reject(new Failure("image_too_large"));
  onState("running");
  try {
    const bytes = await picture.data.arrayBuffer();
    if (picture.hasChanged) return reject(new Failure("file_changed"));
    return bytes.byteLength > 0 ? bytes : reject(new Failure("empty_image"));
  } catch (error) {
    return reject(new Failure(error.name === "NotFoundError" ? "file_gone" : "file_changed"));
  }
}

function settle(jobs, index, outcome, milliseconds) {
  const job = jobs[index];
  if (!(outcome instanceof Failure)) {
    job.resolve({ ...outcome, milliseconds, together: jobs.length });
  } else if (jobs.length > 1 && SHARED_FAULTS.has(outcome.code)) askAlone([job]);
  else job.reject(outcome);
}

function fail(jobs, error) {
  const isCommon = Boolean(error.trouble) || TOKEN_FAULTS.has(error.code);
  const others = isCommon ? waiting.splice(0) : [];
  const isOwnFault = error instanceof Failure && !isCommon;
  if (isOwnFault && jobs.length > 1) return askAlone(jobs);
  for (const job of [...jobs, ...others]) job.reject(error);
}

/** Send each image alone, as one of them may have made the whole request fail. */
function askAlone(jobs) {
  waiting.unshift(...jobs.map((job) => ({ ...job, alone: true })));
}

async function patiently(jobs, signal, send) {
  try {
    for (let tries = 0; ; tries += 1) {
      try {
        return await send();
      } catch (failure) {
        if (!failure.trouble) throw failure;
        for (const { onState } of jobs) onState("waiting");
        const pause = PAUSES[Math.min(tries, PAUSES.length - 1)] * (0.75 + Math.random() / 2);
        const wait = Math.max(pause, 1000 * failure.retryAfter);
        if (await hold(jobs, failure.trouble, wait, signal)) throw failure;
        signal.throwIfAborted();
      }
    }
  } finally {
    letGo(jobs);
  }
}

/** A signal that aborts once none of the images is wanted any more. */
function whileWanted(jobs) {
  const all = new AbortController();
  const check = () => {
    if (jobs.every((job) => job.signal.aborted)) all.abort();
  };
  for (const job of jobs) job.signal.addEventListener("abort", check);
  check();
  const release = () => {
    for (const job of jobs) job.signal.removeEventListener("abort", check);
  };
  return { signal: all.signal, release };
}
