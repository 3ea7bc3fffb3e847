import { facts } from "./facts.js";
import { number, percent, t, translate } from "./language.js";

/** One image: its file, its state and how both are shown. */
export class Card {
  /**
   * @param file an image.
   * @param onRetry called with the card at a press of its button.
   */
  constructor(file, onRetry) {
    this.file = file;
    this.element = clone("card");
    this.element.querySelector(".name").textContent = file.name;
    const image = this.element.querySelector("img");
    image.addEventListener("error", () => image.replaceWith(placeholder()), { once: true });
    image.src = this.url = URL.createObjectURL(file);
    this.part("retry").addEventListener("click", () => onRetry(this));
    this.show({ name: "waiting" });
  }

  /**
   * @param state `name`: waiting, running, busy, done (with `answer`) or failed (with `failure`).
   */
  show(state) {
    this.state = state;
    this.render();
  }

  get answer() {
    return this.state.answer;
  }

  get failure() {
    return this.state.failure;
  }

  get settled() {
    return Boolean(this.answer ?? this.failure);
  }

  /** What went wrong, in plain words; "" where nothing did. */
  get error() {
    if (!this.failure) return "";
    const { code, message, status } = this.failure;
    const limit = megabytes(facts.max_image_bytes);
    const known = t(`error.${code}`, { limit }) ?? t(`error.http_${status}`);
    return known ?? (message || t("error.unknown", { code }));
  }

  /** The state in one sentence. */
  get summary() {
    const name = this.file.name;
    if (this.failure) return `${name}: ${this.error}`;
    const [{ label, probability }] = this.answer.predictions;
    const warning = this.answer.confident ? "" : ` ${this.warning}`;
    return `${name}: ${label}, ${percent(probability)}.${warning}`;
  }

  get warning() {
    return t("warning", { threshold: percent(facts.defaults.threshold, 0) });
  }

  render() {
    translate(this.element);
    const { answer, failure, settled } = this;
    this.element.ariaBusy = String(!settled);
    this.text("state", settled ? "" : t(`state.${this.state.name}`), ".text");
    this.text("failure", this.error);
    this.text("warning", answer && !answer.confident ? this.warning : "");
    this.text("details", answer ? details(answer) : "");
    this.part("retry").hidden = !failure;
    this.part("predictions").hidden = Boolean(failure);
    this.part("predictions").replaceChildren(...(answer?.predictions ?? skeleton()).map(bar));
  }

  /** Hand back what the browser holds for the image. */
  discard() {
    URL.revokeObjectURL(this.url);
    this.element.remove();
  }

  part(name) {
    return this.element.querySelector(`.${name}`);
  }

  text(name, text, inner) {
    const part = this.part(name);
    part.hidden = !text;
    (inner ? part.querySelector(inner) : part).textContent = text;
  }
}

/** Bytes in words. */
export function megabytes(bytes) {
  return number(bytes / 2 ** 20, "megabyte");
}

function details({ model, version, tta, milliseconds }) {
  return [`${model} ${version}`, t(`tta.${tta}`), number(milliseconds, "millisecond")].join(" · ");
}

function skeleton() {
  return Array(facts.defaults.top_k).fill(null);
}

function bar(prediction) {
  const element = clone("prediction");
  if (prediction === null) {
    element.className = "skeleton";
    return element;
  }
  element.querySelector(".label").textContent = prediction.label;
  element.querySelector(".percent").textContent = percent(prediction.probability);
  element.querySelector(".bar > span").style.width = `${100 * prediction.probability}%`;
  return element;
}

/** What stands for a picture that the browser cannot show, such as a TIFF. */
function placeholder() {
  const glyph = document.querySelector(".glyph").cloneNode(true);
  glyph.classList.add("placeholder");
  return glyph;
}

function clone(template) {
  return document.getElementById(template).content.firstElementChild.cloneNode(true);
}
