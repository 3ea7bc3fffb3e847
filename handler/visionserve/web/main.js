import {
  arrange,
  isShown,
  isSorted,
  renderArrangement,
  showAll,
  watchArrangement,
} from "./arrangement.js";
import { Card } from "./card.js";
import { asCurl, asJson, copy } from "./clipboard.js";
import { renderComparison } from "./comparison.js";
import { toCsv } from "./csv.js";
import { factsOf, pageOf } from "./facts.js";
import { draw, inFrames } from "./frames.js";
import { isForeign, toJpeg } from "./jpeg.js";
import { listed, megabytes, t, watchLanguage, wholeName } from "./language.js";
import { countAnew, Picture } from "./picture.js";
import { notify, tell } from "./progress.js";
import { bringUpToDate, giveUp, isBusy } from "./runs.js";
import { forget, keep, restore } from "./session.js";
import { renderSetups, setups, watchSetups } from "./setups.js";
import { watchSources } from "./sources.js";
import { shrinkForView } from "./thumbnail.js";
import { askForToken, watchToken } from "./token.js";
import { toggleWrong } from "./wrong.js";

const REFRESH = 150;

const byId = (id) => document.getElementById(id);
const list = byId("cards");
const cards = new Map();
/** How many chosen images have no card yet. */
let coming = 0;
let shownSetups = setups();
let refreshing;
let isStale = false;
let adding = new AbortController();

/** Add cards for images to the end of the list. It takes time, and Clear interrupts it. */
async function put(images, toPicture) {
  coming += images.length;
  refreshNow();
  await inFrames(images, adding.signal, (image) => {
    coming -= 1;
    const picture = toPicture(image);
    const card = new Card(picture, shownSetups);
    cards.set(picture, card);
    list.append(card.element);
    card.element.addEventListener("contentvisibilityautostatechange", ({ skipped }) => {
      card.isSeen = !skipped;
      if (card.isSeen) view(card);
    });
    enter(picture);
    refresh();
  });
  refreshNow();
}

/** Convert an image to JPEG if the browser reads its format and the server does not. */
function enter(picture) {
  if (picture.file && isForeign(picture.file)) shrink(picture);
  else update(picture);
}

/** Show a picture, and ask the server for the answers that it lacks. */
function update(picture) {
  if (!cards.has(picture)) return;
  draw(cards.get(picture));
  if (!picture.isShrinking) bringUpToDate(picture, shownSetups, onState);
}

function onState(picture, setup) {
  draw(cards.get(picture));
  if (!picture.isSettled(setup)) return;
  keep(picture);
  if (picture.failure(setup)?.code === "unauthorized") askForToken();
  if (picture.failure(setup)?.oversized && picture.canShrink) shrink(picture);
  refresh();
}

/** Make a smaller copy, and send that to every setup that has not answered. */
async function shrink(picture) {
  if (picture.isShrinking) return;
  const { signal } = adding;
  giveUp(picture);
  picture.forgetFailures();
  picture.isShrinking = true;
  draw(cards.get(picture));
  let failure;
  try {
    picture.copy = await toJpeg(picture.file, signal);
  } catch (error) {
    failure = error;
  }
  if (signal.aborted) return;
  picture.isShrinking = false;
  if (failure) {
    const unanswered = shownSetups.filter((setup) => !picture.answer(setup));
    for (const { key } of unanswered) picture.states.set(key, { name: "failed", failure });
  }
  keep(picture);
  update(picture);
  refresh();
}

/** Move the focus from a button that disappears to what the button was about. */
function tryAgain(pictures, action) {
  const elements = pictures.map((picture) => cards.get(picture).element);
  (elements.find(({ hidden }) => !hidden) ?? byId("show")).focus();
  for (const picture of pictures) action(picture);
  refreshNow();
}

function retry(picture) {
  for (const { key, failure } of failuresOf(picture)) {
    if (failure.retryable) picture.states.delete(key);
  }
  update(picture);
}

function failuresOf(picture) {
  return shownSetups
    .map(({ key }) => ({ key, failure: picture.states.get(key)?.failure }))
    .filter(({ failure }) => failure);
}

function failing(kind) {
  return pictures().filter((picture) => failuresOf(picture).some(({ failure }) => failure[kind]));
}

/** The pictures that may get an answer with a smaller copy. */
function tooLarge() {
  return failing("shrinkable").filter(({ canShrink }) => canShrink);
}

function pictures() {
  return [...cards.keys()];
}

/** Show the whole image if it is the only one, and otherwise its thumbnail, made when seen. */
function view(card) {
  const { picture } = card;
  if (!cards.has(picture)) return;
  if (cards.size === 1 && picture.file) card.view(picture.data);
  else if (picture.thumbnail !== undefined) card.view(picture.thumbnail);
  else {
    card.hide();
    makeThumbnail(card, card.isSeen);
  }
}

function makeThumbnail(card, isSeen) {
  const { picture } = card;
  const isWanted = () => cards.has(picture) && picture.thumbnail === undefined;
  const onDone = (thumbnail) => {
    if (!isWanted()) return;
    picture.thumbnail = thumbnail;
    keep(picture);
    view(card);
    if (thumbnail === null) draw(card);
  };
  if (isWanted()) shrinkForView(picture.data, isWanted, onDone, isSeen);
}

function clear() {
  adding.abort();
  adding = new AbortController();
  coming = 0;
  for (const [picture, card] of cards) {
    giveUp(picture);
    card.hide();
  }
  cards.clear();
  countAnew();
  list.replaceChildren();
  forget();
  showAll();
  notify("");
  refreshNow();
  byId("choose").focus();
}

/** Update everything around the cards, from time to time and at the end. */
function refresh() {
  if (isBusy() || coming > 0) refreshing ??= setTimeout(refreshNow, REFRESH);
  else queueMicrotask(() => isStale && refreshNow());
  isStale = true;
}

function refreshNow() {
  clearTimeout(refreshing);
  refreshing = undefined;
  isStale = false;
  const all = pictures();
  const [total, done] = [all.length + coming, all.filter(isSettled).length];
  const isDone = done === total;
  const failures = all.filter((picture) => failuresOf(picture).length > 0).length;
  const [retryable, large] = [failing("retryable"), tooLarge()];
  document.body.classList.toggle("filled", total > 0);
  list.classList.toggle("single", total === 1);
  byId("results").hidden = total === 0;
  byId("download").disabled = !isDone;
  byId("progress").hidden = total < 2;
  byId("arrangement").hidden = total < 2;
  byId("retry-failed").hidden = total < 2 || retryable.length === 0;
  byId("shrink-failed").hidden = total < 2 || large.length === 0;
  byId("shrink-failed").textContent = t("shrinkFailed", { count: large.length });
  const progress = t(failures ? "progressFailed" : "progress", { done, total, failures });
  byId("progress").textContent = progress;
  if (total === 0) tell("", false, "");
  else if (total > 1) tell(progress, !isDone, isDone ? "" : `${done}/${total}`);
  else tell(isDone ? [...cards.values()][0].summary : t("state.running"), false, "");
  renderComparison(all, shownSetups);
  filter(all);
  if (isDone && isSorted()) order();
  for (const card of [...cards.values()].slice(0, 1)) view(card);
  if (isDone) for (const card of cards.values()) makeThumbnail(card, false);
}

function isSettled(picture) {
  return shownSetups.every((setup) => picture.isSettled(setup));
}

/** Show the cards that the person wants to see, and the one that the person is in. */
function filter(all) {
  let shown = 0;
  for (const picture of all) {
    const { element } = cards.get(picture);
    const is = isShown(picture, shownSetups) || element.contains(document.activeElement);
    element.hidden = !is;
    if (is) shown += 1;
  }
  renderArrangement(all, shownSetups, shown);
}

function order() {
  const elements = arrange(pictures(), shownSetups).map((picture) => cards.get(picture).element);
  if (elements.every((element, index) => element === list.children[index])) return;
  const focused = document.activeElement;
  list.append(...elements);
  focused.focus({ preventScroll: true });
}

function download() {
  const rows = arrange(pictures(), shownSetups).flatMap((picture) =>
    shownSetups.map((setup) => {
      const failure = picture.failure(setup);
      const words = failure?.message || failure?.explain(factsOf(setup).max_image_bytes);
      const error = failure && `${failure.code}: ${words}`;
      return { path: picture.name, answer: picture.answer(setup) ?? setup, error };
    }),
  );
  const link = document.createElement("a");
  // Excel recognizes UTF-8 by its byte order mark.
  const blob = new Blob(["\ufeff", toCsv(rows, wholeName)], { type: "text/csv" });
  link.href = URL.createObjectURL(blob);
  link.download = "classifications.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const ACTIONS = {
  where: (picture) => cards.get(picture).toggleWhere(),
  wrong: (picture) => toggleWrong(cards.get(picture)),
  retry: (picture) => tryAgain([picture], retry),
  shrink: (picture) => tryAgain([picture], shrink),
  "copy-json": (picture) => copyText(asJson(picture, shownSetups)),
  "copy-curl": (picture) => copyText(asCurl(picture, shownSetups)),
};

async function copyText(text) {
  await copy(text);
  notify(t("copied"));
}

/** Update the footer and the page's address to the first setup. */
function showSetup() {
  const [setup] = shownSetups;
  byId("fact-model").textContent = setup.model;
  byId("fact-version").textContent = setup.version;
  byId("fact-runtime").textContent = factsOf(setup).runtime;
  const { formats, max_image_bytes } = factsOf(setup);
  byId("limits").textContent = t("limits", {
    formats: listed(formats.map((name) => (name === "WEBP" ? "WebP" : name))),
    limit: megabytes(max_image_bytes),
  });
}

list.addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  const element = target.closest(".card");
  const card = [...cards.values()].find((one) => one.element === element);
  if (button && card) ACTIONS[button.className]?.(card.picture);
});
byId("clear").addEventListener("click", clear);
byId("download").addEventListener("click", download);
byId("retry-failed").addEventListener("click", () => tryAgain(failing("retryable"), retry));
byId("shrink-failed").addEventListener("click", () => tryAgain(tooLarge(), shrink));
addEventListener("beforeunload", (event) => {
  if (coming > 0 || !pictures().every(isSettled)) event.preventDefault();
});
watchSetups(() => {
  shownSetups = setups();
  showSetup();
  history.replaceState(null, "", pageOf(shownSetups[0]));
  for (const [picture, card] of cards) {
    card.setups = shownSetups;
    update(picture);
  }
  refreshNow();
});
watchArrangement(() => {
  filter(pictures());
  order();
});
const restored = restore().then(async (kept) => {
  if (kept.length === 0) return;
  const { signal } = adding;
  await put(kept, (picture) => picture);
  if (!signal.aborted) notify(t("restored", { count: kept.length }));
});
watchSources(
  async ({ images, others }) => {
    await restored;
    const before = list.childElementCount;
    notify(others ? t("leftOut", { count: others }) : "");
    await put(images, ({ file, name }) => new Picture(file, name));
    list.children[before]?.scrollIntoView({ block: "nearest" });
  },
  () => notify(t("addressDropped")),
);
watchToken(() => {
  for (const picture of failing("unauthorized")) retry(picture);
  refreshNow();
});
watchLanguage(() => {
  renderSetups();
  showSetup();
  for (const card of cards.values()) draw(card);
  refreshNow();
});
