import { facts, factsOf } from "./facts.js";
import { isNamed, NAMED, number, percent, shortName, t, wholeName } from "./language.js";
import { setupName } from "./setups.js";
import { clone, say } from "./template.js";

/** One setup's answer about an image, as a part of the image's card. */
export class Column {
  constructor(picture, setup) {
    this.picture = picture;
    this.setup = setup;
    this.element = clone("column");
  }

  /** @param isNamed whether the setup's name is the heading, as there are several columns. */
  render(isNamed) {
    const { picture, setup } = this;
    const { name, answer, failure } = picture.state(setup);
    this.say("setup", isNamed ? setupName(setup) : "");
    this.say("failure", failure ? failure.explain(factsOf(setup).max_image_bytes) : "");
    this.say("labels", answer ? labelled(picture, setup) : "");
    this.say("warning", answer ? warning(setup, answer) : "");
    this.part("warning").classList.toggle("unfamiliar", Boolean(answer?.unfamiliar));
    this.say("independent", answer?.labels ? t("independent") : "");
    this.say("details", answer ? details(answer) : "");
    this.part("state").hidden = Boolean(answer ?? failure);
    if (!answer && !failure) this.part("state").lastElementChild.textContent = t(`state.${name}`);
    this.part("predictions").hidden = Boolean(failure);
    if (failure) return;
    const none = Array(factsOf(setup).defaults.top_k).fill(null);
    this.bars(answer?.predictions ?? none, answer?.plausible);
    for (const [rank, row] of [...this.part("predictions").children].entries()) {
      row.classList.toggle("found", isFound(answer, rank));
    }
  }

  /**
   * Let a person choose which prediction is explained.
   *
   * @param where see `Where`; undefined if there is nothing to explain.
   */
  offer(where) {
    const { picture, setup } = this;
    const isOffered = where && picture.answer(setup) && factsOf(setup).explains;
    const labels = [...this.part("predictions").children].map((row) => row.firstElementChild);
    for (const [rank, label] of labels.entries()) {
      let radio = label.querySelector("input");
      if (!isOffered) {
        radio?.remove();
        continue;
      }
      if (!radio) {
        radio = document.createElement("input");
        Object.assign(radio, { type: "radio", name: `where-${picture.id}` });
        radio.addEventListener("change", () => where.show(setup, rank));
        label.prepend(radio);
      }
      radio.checked = where.isShown(setup, rank);
    }
  }

  /** @param plausible how many of the first predictions are worth showing; the others fade. */
  bars(predictions, plausible = predictions.length) {
    const list = this.part("predictions");
    while (list.childElementCount > predictions.length) list.lastElementChild.remove();
    while (list.childElementCount < predictions.length) list.append(clone("prediction"));
    for (const [rank, prediction] of predictions.entries()) {
      bar(list.children[rank], prediction);
      list.children[rank].classList.toggle("faded", rank >= plausible);
    }
  }

  part(name) {
    return this.element.querySelector(`.${name}`);
  }

  say(name, text) {
    say(this.part(name), text);
  }
}

/** What a person is to know before believing an answer, and what may be the cause; or "". */
export function warning(setup, { confident, unfamiliar, hints = [] }) {
  const sentences = hints.map((hint) => facts.hints[isNamed() ? NAMED : "en"][hint]);
  if (unfamiliar) sentences.unshift(t("unfamiliar"));
  else if (!confident) sentences.unshift(guess(factsOf(setup).defaults.threshold));
  return sentences.join(isNamed() ? "" : " ");
}

/** What a low confidence means; a multi-label model has no one threshold, so null. */
function guess(threshold) {
  return threshold === null ? t("noLabel") : t("warning", { threshold: percent(threshold, 0) });
}

/** The labels that a multi-label model gives an image, in words; nothing for other models. */
export function labelled(picture, setup) {
  if (!picture.answer(setup).labels) return "";
  const labels = picture.found(setup).map(shortName).join(t("comma"));
  return labels ? t("labels", { labels }) : t("labels.none");
}

/** Whether the image is said to show a prediction's class. */
function isFound(answer, rank) {
  const prediction = answer?.predictions[rank];
  return answer?.labels ? answer.labels.includes(prediction?.label) : rank === 0;
}

function details({ model, version, tta, milliseconds, together, cached }) {
  const time = number(milliseconds, "millisecond");
  return [
    `${model} ${version}`,
    t(`tta.${tta}`) ?? tta,
    together > 1 ? t("together", { time, count: together }) : time,
    ...(cached ? [t("cached")] : []),
  ].join(" · ");
}

function bar(element, prediction) {
  const [label, share, track] = element.children;
  element.classList.toggle("skeleton", prediction === null);
  label.lastElementChild.textContent = prediction ? shortName(prediction) : "";
  const whole = prediction ? wholeName(prediction) : "";
  if (label.title !== whole) label.title = whole;
  share.textContent = prediction ? percent(prediction.probability) : "";
  track.firstElementChild.style.width = prediction ? `${100 * prediction.probability}%` : "";
}
