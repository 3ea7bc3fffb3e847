import { number, percent, t } from "./language.js";
import { setupName } from "./setups.js";

/** Whether several setups have answered an image, with different labels. */
export function isDisagreement(picture, setups) {
  const verdicts = setups.map((setup) => picture.verdict(setup)).filter(Boolean);
  return verdicts.some((verdict) => verdict !== verdicts[0]);
}

/**
 * Fill the table that compares setups: how many images each has answered, how often its label
 * equals the first setup's, its mean confidence, and its mean time per image that was not cached.
 */
export function renderComparison(pictures, setups) {
  const section = document.getElementById("comparison");
  section.hidden = setups.length < 2;
  if (section.hidden) return;
  const shared = pictures.filter((picture) => setups.every((setup) => picture.answer(setup)));
  const agreed = shared.filter((picture) => !isDisagreement(picture, setups));
  document.getElementById("agreement").textContent = t("agreement", {
    agreed: agreed.length,
    total: shared.length,
    share: share(agreed.length, shared.length),
  });
  const [first] = setups;
  const rows = setups.map((setup) => {
    const answers = pictures.map((picture) => picture.answer(setup)).filter(Boolean);
    const both = pictures.filter((picture) => picture.answer(setup) && picture.answer(first));
    const same = both.filter((picture) => picture.verdict(setup) === picture.verdict(first));
    const timed = answers.filter(({ cached }) => !cached);
    return [
      setupName(setup),
      String(answers.length),
      setup === first ? "–" : share(same.length, both.length),
      share(sum(answers.map(({ predictions }) => predictions[0].probability)), answers.length),
      timed.length
        ? number(sum(timed.map(({ milliseconds }) => milliseconds)) / timed.length, "millisecond")
        : answers.length
          ? t("cached")
          : "–",
    ];
  });
  section.querySelector("tbody").replaceChildren(...rows.map(tableRow));
}

function tableRow(cells) {
  const row = document.createElement("tr");
  const [head, ...rest] = cells.map((text, index) => {
    const cell = document.createElement(index ? "td" : "th");
    cell.textContent = text;
    return cell;
  });
  head.scope = "row";
  row.append(head, ...rest);
  return row;
}

function share(part, whole) {
  return whole ? percent(part / whole) : "–";
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}
