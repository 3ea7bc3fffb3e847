import { Failure } from "./failure.js";
import { ask } from "./queue.js";

/** Running requests: picture to key of a setup to AbortController. */
const runs = new Map();

/** Whether any request is running. */
export function isBusy() {
  return runs.size > 0;
}

/**
 * Ask each setup that has not been asked about an image yet; stop requests of other setups.
 *
 * @param onState called with the picture and the setup whenever their state changes.
 */
export function bringUpToDate(picture, setups, onState) {
  const keys = setups.map(({ key }) => key);
  for (const key of runs.get(picture)?.keys() ?? []) if (!keys.includes(key)) giveUp(picture, key);
  for (const setup of setups) {
    const isAsked = runs.get(picture)?.has(setup.key) || picture.isSettled(setup);
    if (!isAsked) classify(picture, setup, onState);
  }
}

/** Stop an image's requests; only one setup's if its key is given. */
export function giveUp(picture, key) {
  for (const [asked, run] of runs.get(picture) ?? []) {
    if (key !== undefined && asked !== key) continue;
    run.abort();
    end(picture, asked);
    picture.states.delete(asked);
  }
}

async function classify(picture, setup, onState) {
  const show = (state) => {
    if (signal.aborted) return;
    picture.states.set(setup.key, state);
    onState(picture, setup);
  };
  const { signal } = begin(picture, setup.key);
  show({ name: "waiting" });
  let state;
  try {
    if (!picture.file) throw new Failure("original_missing");
    const answer = await ask(picture, setup, signal, (name) => show({ name }));
    state = { name: "done", answer };
  } catch (failure) {
    if (signal.aborted) return;
    if (!(failure instanceof Failure)) throw failure;
    state = { name: "failed", failure };
  }
  if (signal.aborted) return;
  end(picture, setup.key);
  show(state);
}

function begin(picture, key) {
  if (!runs.has(picture)) runs.set(picture, new Map());
  const run = new AbortController();
  runs.get(picture).set(key, run);
  return run;
}

function end(picture, key) {
  runs.get(picture).delete(key);
  if (runs.get(picture).size === 0) runs.delete(picture);
}
