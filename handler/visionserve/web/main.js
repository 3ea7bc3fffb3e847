import { renderAbout, watchAbout } from "./about.js";
import {
  arrange,
  isShown,
  isSorted,
  renderArrangement,
  showAll,
  watchArrangement,
} from "./arrangement.js";
import { renderBanner, watchBanner } from "./banner.js";
import { Card } from "./card.js";
import { asCurl, asJson, copy } from "./clipboard.js";
import { renderComparison } from "./comparison.js";
import { watchDownload } from "./download.js";
import { chooseExample, exampleAmong } from "./examples.js";
import { factsOf, pageOf } from "./facts.js";
import { watchFolding } from "./folding.js";
import { draw, inFrames } from "./frames.js";
import { isForeign, toJpeg } from "./jpeg.js";
import { fileSize, listed, t, watchLanguage } from "./language.js";
import { linked, linkTo } from "./link.js";
import { Picture } from "./picture.js";
import { announce, notify, tell } from "./progress.js";
import { bringUpToDate, giveUp, isBusy } from "./runs.js";
import { countOthers, forget, forgetOthers, keep, restore } from "./session.js";
import { renderSetups, setups, watchSetups } from "./setups.js";
import { watchSources } from "./sources.js";
import { shrinkForView } from "./thumbnail.js";
import { askForToken, enterToken, watchToken } from "./token.js";
import { watchTrouble } from "./trouble.js";
import { cannotUndo, canUndo, takeBack } from "./undo.js";
import { toggleWrong } from "./wrong.js";

const REFRESH = 150;
/** How long to wait for a picture's place before a new card is brought into view, in milliseconds. */
const PLACED = 1000;

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
  const failure = picture.failure(setup);
  if (failure?.unauthorized) askForToken();
  if ((failure?.shrinkable || failure?.convertible) && picture.canShrink) shrink(picture, failure);
  refresh();
}

/**
 * Make a smaller copy, and send that to every setup that has not answered.
 *
 * @param reason the server's refusal of the image, if it was sent.
 */
async function shrink(picture, reason) {
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
    failure = reason?.convertible ? reason : error;
  }
  picture.isShrinking = false;
  if (!cards.has(picture)) return;
  if (failure && !signal.aborted) {
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
  remove(pictures());
  forget();
  showAll();
  byId("choose").focus();
}

/** Remove pictures. Until others are chosen, they can come back. */
function remove(gone) {
  for (const picture of gone) {
    giveUp(picture);
    cards.get(picture).hide();
    cards.get(picture).element.remove();
    cards.delete(picture);
  }
  forget(gone);
  canUndo(gone);
  const undo = { label: t("undo"), action: bringBack };
  notify(gone.length ? t("removed", { count: gone.length }) : "", gone.length ? undo : {});
  refreshNow();
}

/** Remove one card, and move the focus to the next one. */
function removeOne(picture) {
  const { element } = cards.get(picture);
  const next = element.nextElementSibling ?? element.previousElementSibling;
  remove([picture]);
  (next ?? byId("choose")).focus();
}

/** Undo a removal. */
async function bringBack() {
  const back = takeBack();
  notify("");
  await put(back, (picture) => picture);
  const all = [...cards].sort(([one], [other]) => one.id - other.id);
  cards.clear();
  for (const [picture, card] of all) cards.set(picture, card);
  list.append(...all.map(([, { element }]) => element));
  for (const picture of back) keep(picture);
  refreshNow();
  if (isSorted()) order();
  cards.get(back[0])?.element.focus();
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
  const refused = failing("unauthorized").flatMap(failuresOf)[0]?.failure.code;
  document.body.classList.toggle("filled", total > 0);
  list.classList.toggle("single", total === 1);
  byId("results").hidden = total === 0;
  byId("download").hidden = !isDone;
  byId("arrangement").hidden = total < 2;
  byId("retry-failed").hidden = total < 2 || failing("retryable").length === 0;
  const banner = renderBanner({ total, done, failures, refused });
  const isPassing = !isDone && !banner.cause;
  if (total === 0) tell("", false, "");
  else if (total > 1) tell(banner.text, isPassing, isDone ? "" : `${done}/${total}`);
  else if (isDone) tell([...cards.values()][0].summary, false, "");
  else tell(banner.cause ? banner.text : t("state.running"), false, "");
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

const ACTIONS = {
  where: (picture) => cards.get(picture).toggleWhere(),
  wrong: (picture) => toggleWrong(cards.get(picture)),
  retry: (picture) => tryAgain([picture], retry),
  "copy-json": (picture) => copyOf(picture, asJson, "copy-json"),
  "copy-curl": (picture) => copyOf(picture, asCurl, "copy-curl"),
  remove: removeOne,
};

async function copyOf(picture, write, button) {
  await copy(write(picture, shownSetups));
  cards.get(picture)?.copied(button);
}

/** Copy the address of the page with the chosen options. */
async function copyLink() {
  await copy(linkTo(shownSetups, exampleAmong(pictures())));
  announce(t("copied"));
  byId("copy-link").textContent = t("copied");
  setTimeout(() => {
    byId("copy-link").textContent = t("copyLink");
  }, 2000);
}

/** Bring a new card into view once its picture has its place, and again with its answer. */
async function reveal(card) {
  const isAlone = cards.size === 1;
  if (isAlone) await Promise.race([card.placed, new Promise((go) => setTimeout(go, PLACED))]);
  card.element.scrollIntoView({ block: "nearest" });
  const before = scrollY;
  await card.settled;
  // Not if the person has gone elsewhere meanwhile.
  if (scrollY === before) card.element.scrollIntoView({ block: "nearest" });
}

/** Give kept results their files again; return the images that have none. */
function regain(images) {
  const known = pictures().filter(({ file }) => !file);
  const found = [];
  const others = images.filter(({ file, name }) => {
    const picture = known.find((one) => one.awaits(file, name));
    picture?.regain(file);
    if (picture) found.push(picture);
    return !picture;
  });
  for (const picture of found) (isSettled(picture) ? update : enter)(picture);
  return [found, others];
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
    limit: fileSize(max_image_bytes),
  });
  renderAbout(setup);
}

list.addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  const element = target.closest(".card");
  const card = [...cards.values()].find((one) => one.element === element);
  if (button && card) ACTIONS[button.className]?.(card.picture);
});
byId("clear").addEventListener("click", clear);
byId("copy-link").addEventListener("click", copyLink);
byId("retry-failed").addEventListener("click", () => tryAgain(failing("retryable"), retry));
watchAbout();
watchBanner(enterToken);
watchDownload(() => [arrange(pictures(), shownSetups), shownSetups]);
watchFolding();
watchTrouble(refresh);
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
  const { signal } = adding;
  await put(kept, (picture) => picture);
  if (!signal.aborted && kept.length > 0) notify(t("restored", { count: kept.length }));
  if (linked.example && kept.length === 0) chooseExample(linked.example);
  if (location.hash) history.replaceState(null, "", pageOf(shownSetups[0]));
});
restored.then(countOthers).then((count) => {
  byId("other-tabs").hidden = count === 0;
});
byId("forget-others").addEventListener("click", async () => {
  await forgetOthers();
  byId("other-tabs").hidden = true;
});
watchSources(
  async ({ images, others }) => {
    await restored;
    cannotUndo(cards.size === 0);
    const [known, fresh] = regain(images);
    notify(others ? t("leftOut", { count: others }) : "");
    const added = new Set(pictures());
    await put(fresh, ({ file, name }) => new Picture(file, name));
    const first = pictures().find((picture) => !added.has(picture)) ?? known[0];
    if (first) reveal(cards.get(first));
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
