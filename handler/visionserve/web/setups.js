import { facts, factsOf, isAmbiguous } from "./facts.js";
import { renderFolding } from "./folding.js";
import { t, translate } from "./language.js";
import { linked } from "./link.js";
import { recall, remember } from "./memory.js";
import { clone } from "./template.js";

const SETUPS = "visionserve-setups";
const MOST_SETUPS = 3;

const pills = document.getElementById("models");
const ttaField = document.getElementById("tta");
const rowsOfOthers = document.getElementById("others");
const compare = document.getElementById("compare");

/** What images are sent to: a model, its version and a test-time augmentation that it offers. */
function toSetup({ model, version, tta: wanted }) {
  const { modes, defaults } = factsOf({ model, version });
  const tta = modes.includes(wanted) ? wanted : defaults.tta;
  return { model, version, tta, key: JSON.stringify([model, version, tta]) };
}

/** The first setup, and the ones to compare it with; two of them may be equal. */
const chosen = remembered();

/**
 * The setups that the page's address names, or those from before a reload; the first one is always
 * for the model that serves the page.
 */
function remembered() {
  const kept = linked.setups ?? JSON.parse(recall("sessionStorage", SETUPS) ?? "[]");
  const has = ({ model, version }) =>
    facts.models.some((other) => other.model === model && other.version === version);
  const tta = kept[0]?.tta ?? factsOf(facts).defaults.tta;
  return [{ ...facts, tta }, ...kept.slice(1, MOST_SETUPS).filter(has)].map(toSetup);
}

/** The chosen setups without duplicates. */
export function setups() {
  return chosen.filter(
    (setup, index) => chosen.findIndex(({ key }) => key === setup.key) === index,
  );
}

/** A setup in a few words. */
export function setupName({ model, version, tta }) {
  return `${modelName({ model, version })} · ${t(`tta.${tta}`)}`;
}

function modelName({ model, version }) {
  return isAmbiguous(model) ? `${model} ${version}` : model;
}

/** Let the person choose setups, and call back after each change. */
export function watchSetups(onChange) {
  const change = (index, wanted) => {
    chosen[index] = toSetup({ ...chosen[index], ...wanted });
    changed();
  };
  const changed = () => {
    remember("sessionStorage", SETUPS, JSON.stringify(chosen));
    renderSetups();
    onChange();
  };
  if (linked.setups) remember("sessionStorage", SETUPS, JSON.stringify(chosen));
  pills.addEventListener("click", ({ target }) => {
    const pill = target.closest("button");
    if (pill) change(0, facts.models[pill.value]);
  });
  ttaField.addEventListener("change", () => change(0, { tta: ttaField.value }));
  compare.addEventListener("click", () => {
    chosen.push(another());
    changed();
    rowsOfOthers.lastElementChild.querySelector("select").focus();
  });
  rowsOfOthers.addEventListener("change", ({ target }) => {
    const isModel = target.matches(".model");
    change(indexOf(target), isModel ? facts.models[target.value] : { tta: target.value });
  });
  rowsOfOthers.addEventListener("click", ({ target }) => {
    if (!target.matches(".remove")) return;
    chosen.splice(indexOf(target), 1);
    changed();
    compare.focus();
  });
}

/** Update the fields to the chosen setups, in the person's language. */
export function renderSetups() {
  const [first, ...others] = chosen;
  if (!pills.childElementCount) pills.append(...facts.models.map(toPill));
  for (const pill of pills.children) {
    const { model, version } = facts.models[pill.value];
    pill.ariaPressed = String(model === first.model && version === first.version);
  }
  renderViews(ttaField, first);
  while (rowsOfOthers.childElementCount > others.length) rowsOfOthers.lastElementChild.remove();
  while (rowsOfOthers.childElementCount < others.length) rowsOfOthers.append(toRow());
  others.forEach((setup, index) => {
    const row = rowsOfOthers.children[index];
    row.querySelector(".model").value = indexOfModel(setup);
    renderViews(row.querySelector(".tta"), setup);
    const remove = row.querySelector(".remove");
    remove.ariaLabel = `${t("remove")}: ${setupName(setup)}`;
  });
  compare.hidden = chosen.length === MOST_SETUPS;
  const count = others.length;
  renderFolding(setupName(first) + (count ? ` ${t("andOthers", { count })}` : ""));
}

/** Show the chosen views in a field, and disable those that the model does not have. */
function renderViews(field, setup) {
  const { modes } = factsOf(setup);
  for (const option of field.options) option.disabled = !modes.includes(option.value);
  field.value = setup.tta;
}

function toPill(facts, index) {
  const pill = document.createElement("button");
  pill.type = "button";
  pill.value = index;
  pill.textContent = modelName(facts);
  return pill;
}

function toRow() {
  const row = clone("other");
  const options = facts.models.map((model, index) => new Option(modelName(model), index));
  row.querySelector(".model").append(...options);
  row
    .querySelector(".tta")
    .append(...[...ttaField.options].map((option) => option.cloneNode(true)));
  translate(row);
  return row;
}

function indexOfModel({ model, version }) {
  return facts.models.findIndex((other) => other.model === model && other.version === version);
}

function indexOf(target) {
  return 1 + [...rowsOfOthers.children].indexOf(target.closest(".other"));
}

/** A setup that is not chosen yet: another model if there is one, or else other views. */
function another() {
  const isNew = (setup) => chosen.every(({ key }) => key !== setup.key);
  const { tta } = chosen[0];
  const views = [tta, ...[...ttaField.options].map(({ value }) => value)];
  const candidates = views.flatMap((view) =>
    facts.models.map((model) => toSetup({ ...model, tta: view })),
  );
  return candidates.find(isNew);
}
