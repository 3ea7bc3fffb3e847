import { isDisagreement } from "./comparison.js";
import { t } from "./language.js";
import { clone } from "./template.js";

const MOST_LABELS = 12;
const show = document.getElementById("show");
const sort = document.getElementById("sort");
const counts = document.getElementById("counts");
const listOfCounts = counts.querySelector("ul");

let label = null;

/** Which cards are shown, by state. */
const KINDS = {
  all: () => true,
  failed: (picture, setups) => setups.some((setup) => picture.failure(setup)),
  unsure: (picture, setups) =>
    setups.some((setup) => picture.answer(setup)?.confident === false),
  disagreement: isDisagreement,
};

/** How cards are ordered; those without an answer come last. */
const ORDERS = {
  added: (picture) => picture.id,
  unsure: (picture, [setup]) => picture.answer(setup)?.predictions[0].probability ?? 2,
  sure: (picture, [setup]) => -(picture.answer(setup)?.predictions[0].probability ?? -1),
  label: (picture, [setup]) => picture.label(setup) ?? "\uffff",
};

/** Call back at each change of what is to be shown, or in which order. */
export function watchArrangement(onChange) {
  show.addEventListener("change", onChange);
  sort.addEventListener("change", onChange);
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

/** Show all again, in the order in which they came. */
export function showAll() {
  [show.value, sort.value, label] = ["all", "added", null];
}

/** Whether the cards stand in an order that changes with the answers. */
export function isSorted() {
  return sort.value !== "added";
}

/** Whether a picture is to be shown. */
export function isShown(picture, setups) {
  if (label !== null && picture.label(setups[0]) !== label) return false;
  return KINDS[show.value](picture, setups);
}

/** The pictures in the order that was chosen. */
export function arrange(pictures, setups) {
  const rank = ORDERS[sort.value];
  const ranked = pictures.map((picture) => [rank(picture, setups), picture]);
  ranked.sort(([one], [other]) => (one < other ? -1 : one > other ? 1 : 0));
  return ranked.map(([, picture]) => picture);
}

/** Say how many are shown, and count the labels of the first setup. */
export function renderArrangement(pictures, setups, shown) {
  const disagreement = show.querySelector("[value=disagreement]");
  disagreement.hidden = setups.length < 2;
  const isPart = shown < pictures.length || label !== null;
  document.getElementById("part").hidden = !isPart;
  const part = { shown, total: pictures.length, label };
  document.getElementById("shown").textContent = t(label === null ? "shown" : "shownOf", part);
  renderCounts(pictures, setups[0]);
}

function renderCounts(pictures, setup) {
  const numbers = new Map();
  for (const picture of pictures) {
    const name = picture.label(setup);
    if (name !== undefined) numbers.set(name, (numbers.get(name) ?? 0) + 1);
  }
  counts.hidden = numbers.size === 0;
  const all = [...numbers].sort(([, one], [, other]) => other - one);
  const chosen = all.filter(([name], index) => index < MOST_LABELS || name === label);
  while (listOfCounts.childElementCount > chosen.length) listOfCounts.lastElementChild.remove();
  while (listOfCounts.childElementCount < chosen.length) listOfCounts.append(clone("count"));
  chosen.forEach(([name, count], index) => {
    const button = listOfCounts.children[index].firstElementChild;
    const [text, figure, track] = button.children;
    button.value = name;
    button.ariaPressed = String(name === label);
    text.textContent = name;
    figure.textContent = count;
    track.firstElementChild.style.width = `${(100 * count) / chosen[0][1]}%`;
  });
  const left = all.length - chosen.length;
  document.getElementById("more-labels").textContent = left ? t("moreLabels", { count: left }) : "";
}
