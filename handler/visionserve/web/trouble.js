/** Requests that wait until they are sent again: what for, until when, and how to wake them. */
const held = new Map();
let onTrouble = () => {};

/** Call back whenever a request begins to wait for the server, or has got through. */
export function watchTrouble(onChange) {
  onTrouble = onChange;
}

/**
 * What requests wait for.
 *
 * @returns undefined if none waits; or `kind`, as `Failure.trouble` has it, and `next`, the time of
 *   the next try in milliseconds since 1970, which has passed while a try is under way.
 */
export function trouble() {
  if (held.size === 0) return undefined;
  const all = [...held.values()];
  return { kind: all.at(-1).kind, next: Math.min(...all.map(({ next }) => next)) };
}

/**
 * Wait until a request may be tried again.
 *
 * @returns whether the person said to stop trying.
 */
export async function hold(request, kind, milliseconds, signal) {
  if (held.get(request)?.stops) return true;
  const stops = await new Promise((wake) => {
    held.set(request, { kind, next: Date.now() + milliseconds, wake });
    setTimeout(wake, milliseconds, false);
    signal.addEventListener("abort", () => wake(false), { once: true });
    onTrouble();
  });
  if (held.has(request)) held.get(request).next = 0;
  return stops;
}

/** Say that a request has got an answer, or is not wanted any more. */
export function letGo(request) {
  if (held.delete(request)) onTrouble();
}

/** Send all requests again now. */
export function tryNow() {
  for (const { wake } of held.values()) wake(false);
}

/** Have all requests fail with the failure that they have, or with that of the try under way. */
export function stopTrying() {
  for (const one of held.values()) {
    one.stops = true;
    one.wake(true);
  }
}
