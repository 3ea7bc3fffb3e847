import { isDisagreement } from "./comparison.js";
import { compareTexts, shortName, t, wholeName } from "./language.js";
import { clone } from "./template.js";

const MOST_LABELS = 12;
const show = document.getElementById("show");
const sort = document.getElementById("sort");
const counts = document.getElementById("counts");
const listOfCounts = counts.querySelector("ul");
const nameSearch = document.getElementById("name-search");
const compact = document.getElementById("compact");
const moreLabels = document.getElementById("more-labels");

let label = null;
let areAllCounted = false;

/** Which cards are shown, by state. */
const KINDS = {
  all: () => true,
  failed: (picture, setups) => setups.some((setup) => picture.failure(setup)),
  unsure: (picture, setups) => setups.some((setup) => picture.answer(setup)?.confident === false),
  unfamiliar: (picture, setups) => setups.some((setup) => picture.answer(setup)?.unfamiliar),
  disagreement: isDisagreement,
};

/** How cards that have a best prediction are ordered. */
const ORDERS = {
  unsure: (one, other) => one.probability - other.probability,
  sure: (one, other) => other.probability - one.probability,
  label: (one, other) => compareTexts(shortName(one), shortName(other)),
};

/** Call back whenever the choice of what to show, or the order, changes. */
export function watchArrangement(onChange) {
  show.addEventListener("change", onChange);
  sort.addEventListener("change", onChange);
  nameSearch.addEventListener("input", onChange);
  compact.addEventListener("click", () => {
    const is = document.getElementById("cards").classList.toggle("compact");
    compact.ariaPressed = String(is);
  });
  moreLabels.addEventListener("click", () => {
    areAllCounted = true;
    onChange();
    listOfCounts.children[MOST_LABELS]?.firstElementChild.focus();
  });
  listOfCounts.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    label = button.value === label ? null : button.value;
    onChange();
  });
  document.getElementById("show-all").addEventListener("click", () => {
    showAll();
    onChange();
    show.focus();
  });
}

/** Show all cards again, in the order in which they were added. */
export function showAll() {
  [show.value, sort.value, nameSearch.value, label] = ["all", "added", "", null];
}

/** Whether the order of the cards depends on their answers. */
export function isSorted() {
  return sort.value !== "added";
}

/** Whether to show a picture. */
export function isShown(picture, setups) {
  const isLabelled = (prediction) => prediction.label === label;
  if (label !== null && !picture.found(setups[0]).some(isLabelled)) return false;
  if (!picture.name.toLowerCase().includes(nameSearch.value.trim().toLowerCase())) return false;
  return KINDS[show.value](picture, setups);
}

/** The pictures in the chosen order; pictures without an answer come last. */
export function arrange(pictures, [setup]) {
  if (!isSorted()) return pictures;
  const order = ORDERS[sort.value];
  const answered = pictures.filter((picture) => picture.best(setup));
  answered.sort((one, other) => order(one.best(setup), other.best(setup)));
  return [...answered, ...pictures.filter((picture) => !picture.best(setup))];
}

/** Say how many are shown, and count the labels of the first setup. */
export function renderArrangement(pictures, setups, shown) {
  const disagreement = show.querySelector("[value=disagreement]");
  disagreement.hidden = setups.length < 2;
  const unfamiliar = show.querySelector("[value=unfamiliar]");
  unfamiliar.hidden = !pictures.some((picture) => KINDS.unfamiliar(picture, setups));
  const isPart = shown < pictures.length || label !== null || nameSearch.value !== "";
  document.getElementById("part").hidden = !isPart;
  const found = pictures.flatMap((picture) => picture.found(setups[0]));
  const chosen = found.find((prediction) => prediction.label === label);
  const part = { shown, total: pictures.length, label: chosen ? shortName(chosen) : label };
  document.getElementById("shown").textContent = t(label === null ? "shown" : "shownOf", part);
  renderCounts(found);
}

/** @param found the predictions that the pictures are said to show. */
function renderCounts(found) {
  const numbers = new Map();
  for (const prediction of found) {
    const { count = 0 } = numbers.get(prediction.label) ?? {};
    numbers.set(prediction.label, { prediction, count: count + 1 });
  }
  counts.hidden = numbers.size === 0;
  const all = [...numbers.values()].sort((one, other) => other.count - one.count);
  const isListed = ({ prediction }, index) =>
    areAllCounted || index < MOST_LABELS || prediction.label === label;
  const chosen = all.filter(isListed);
  while (listOfCounts.childElementCount > chosen.length) listOfCounts.lastElementChild.remove();
  while (listOfCounts.childElementCount < chosen.length) listOfCounts.append(clone("count"));
  chosen.forEach(({ prediction, count }, index) => {
    const button = listOfCounts.children[index].firstElementChild;
    const [text, figure, track] = button.children;
    button.value = prediction.label;
    button.title = wholeName(prediction);
    button.ariaPressed = String(prediction.label === label);
    text.textContent = shortName(prediction);
    figure.textContent = count;
    track.firstElementChild.style.width = `${(100 * count) / chosen[0].count}%`;
  });
  const left = all.length - chosen.length;
  moreLabels.hidden = left === 0;
  moreLabels.textContent = t("moreLabels", { count: left });
}
