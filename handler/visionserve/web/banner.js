import { duration, plain, t } from "./language.js";
import { stopTrying, trouble, tryNow } from "./trouble.js";

/** A run of more images shows a bar and how much time it takes still. */
const LONG = 20;
/** No time is told before so many images and milliseconds of a run. */
const [TOLD_AFTER, TOLD_SINCE] = [5, 2000];

const banner = document.getElementById("banner");
const line = document.getElementById("progress");
const rail = document.getElementById("progress-bar");
const cause = document.getElementById("trouble");
const nextTry = document.getElementById("next-try");
const actions = document.getElementById("trouble-actions");

/** When the present run began, or went on after a pause, and how many images were done then. */
let began;
setInterval(countDown, 1000);

/** Have the banner's buttons work. @param onToken called if the person wants to enter a token. */
export function watchBanner(onToken) {
  document.getElementById("try-now").addEventListener("click", tryNow);
  document.getElementById("stop-trying").addEventListener("click", stopTrying);
  document.getElementById("enter-token").addEventListener("click", onToken);
}

/**
 * Show the state of a run: how far it is, and what it waits for, if anything.
 *
 * @param run `total`, `done` and `failures`, numbers of images; and `refused`, the code of the
 *   token's refusal, if it was refused.
 * @returns the same in one sentence or two, for people who cannot see it, and `cause`, whether it
 *   waits for something.
 */
export function renderBanner({ total, done, failures, refused }) {
  const isDone = done === total;
  const held = isDone ? undefined : trouble();
  const why = held ? t(`trouble.${held.kind}`) : refused ? t(`error.${refused}`) : "";
  const said = t(failures ? "progressFailed" : "progress", { done, total, failures });
  if (isDone || held) began = undefined;
  else began ??= { time: performance.now(), done };
  const left = held || isDone ? undefined : timeLeft(total, done);
  banner.hidden = total === 0 || (total === 1 && !why);
  banner.classList.toggle("long", total > LONG && !isDone);
  banner.classList.toggle("troubled", Boolean(why));
  line.hidden = total < 2;
  line.textContent = left ? `${said} ${t("timeLeft", { time: duration(left) })}` : said;
  rail.hidden = total <= LONG || isDone;
  [rail.max, rail.value] = [total || 1, done];
  cause.hidden = !why;
  if (cause.textContent !== why) cause.textContent = why;
  nextTry.hidden = !held;
  actions.hidden = !why;
  for (const button of actions.children)
    button.hidden = (button.id === "enter-token") === Boolean(held);
  countDown();
  return { text: why && total > 1 ? `${why} ${said}` : why || said, cause: Boolean(why) };
}

/** Seconds until the run is done, at its pace; undefined for a short run, or too early to tell. */
function timeLeft(total, done) {
  const passed = performance.now() - began.time;
  const count = done - began.done;
  if (total <= LONG || count < TOLD_AFTER || passed < TOLD_SINCE) return undefined;
  return ((passed / count) * (total - done)) / 1000;
}

/** Say when the next try is. */
function countDown() {
  const held = trouble();
  if (!held || nextTry.hidden) return;
  const seconds = Math.ceil((held.next - Date.now()) / 1000);
  nextTry.textContent = seconds > 0 ? t("nextTry", { seconds: plain(seconds) }) : t("tryingNow");
}
