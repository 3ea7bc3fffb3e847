import { factsOf } from "./facts.js";
import { t, translate } from "./language.js";
import { describe, sendReport } from "./server.js";

/** The setup whose answer can be reported, as its server keeps samples; undefined if there is none. */
export function reportable(picture, setups) {
  return setups.find((setup) => picture.answer(setup)?.sample && factsOf(setup).samples);
}

/** Ask in a card what its picture really shows, or stop asking. */
export function toggleWrong({ element, picture, setups }) {
  const asked = element.querySelector(".wrong-form");
  if (asked) {
    asked.remove();
    return;
  }
  const setup = reportable(picture, setups);
  const known = describe(setup, "classes").then(({ classes }) => classes.map(({ label }) => label));
  const form = wrongForm(`wrong-${picture.id}`, known);
  element.querySelector(".actions").after(form);
  const field = form.querySelector("input");
  const told = form.querySelector(".told");
  const right = [];
  field.focus();
  field.addEventListener("input", () => field.setCustomValidity(""));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const isNone = field.value === t("wrong.none");
    const labels = isNone ? [] : await known.catch(() => null);
    if (!labels) {
      told.textContent = t("wrong.failed");
      return;
    }
    if (!isNone && !labels.includes(field.value)) {
      field.setCustomValidity(t("wrong.unknown"));
      field.reportValidity();
      return;
    }
    // A picture may have several labels of a multi-label model, which are given one by one.
    const isMulti = Boolean(picture.answer(setup).labels);
    if (isNone || !isMulti) right.length = 0;
    if (!isNone) right.push(field.value);
    const id = picture.answer(setup).sample;
    const label = isMulti ? right : (right[0] ?? null);
    form.querySelector("button").disabled = true;
    const isKept = await report(setup, { id, label }, picture.data).catch(() => false);
    form.querySelector("button").disabled = false;
    told.textContent = t(isKept ? "wrong.thanks" : "wrong.failed");
    if (isKept) field.value = "";
  });
}

/**
 * Make the form: one text, chosen by typing among all labels and "none of these".
 *
 * @param known a promise of the labels, which the list gets once they are there.
 */
function wrongForm(id, known) {
  const form = document.createElement("form");
  form.className = "wrong-form";
  form.innerHTML = `<label><span data-text="wrong.label"></span> <input required autocomplete="off"></label>
    <datalist><option></option></datalist> <button data-text="wrong.send"></button>
    <p class="hint" data-text="wrong.hint"></p><p class="told" role="status"></p>`;
  const list = form.querySelector("datalist");
  list.id = id;
  form.querySelector("input").setAttribute("list", id);
  list.firstElementChild.value = t("wrong.none");
  known
    .then((labels) => list.append(...labels.map((label) => new Option(label, label))))
    .catch(
      () => {}, // The form says so once a label is sent.
    );
  translate(form);
  return form;
}

/**
 * Send a report. Where the picture was not kept, it is sent as well.
 *
 * @returns whether the report is kept.
 */
async function report(setup, { id, label }, file) {
  let status = await sendReport(setup, { report: { id, label } });
  if (status === 404 && file) {
    status = await sendReport(setup, { report: { label }, data: await asDataUri(file) });
  }
  return status === 200;
}

function asDataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
