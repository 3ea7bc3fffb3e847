import { Column, warning } from "./column.js";
import { isDisagreement } from "./comparison.js";
import { factsOf } from "./facts.js";
import { megabytes, percent, t } from "./language.js";
import { clone, say } from "./template.js";

/** One image on the page: its picture and a column for each setup. */
export class Card {
  constructor(picture, setups) {
    Object.assign(this, { picture, setups, columns: [] });
    this.element = clone("card");
    this.element.dataset.id = picture.id;
    this.part("name").textContent = picture.name;
  }

  render() {
    const { picture, setups } = this;
    const isCompared = setups.length > 1;
    this.haveColumns();
    for (const column of this.columns) column.render(isCompared);
    const failures = setups.map((setup) => picture.failure(setup)).filter(Boolean);
    const isDone = setups.every((setup) => picture.isSettled(setup));
    const isAnswered = setups.some((setup) => picture.answer(setup));
    this.element.ariaBusy = String(!isDone);
    this.element.classList.toggle("compared", isCompared);
    this.say("note", picture.copy ? t("copySent", sizeOf(picture.copy)) : "");
    this.say("disagreement", isDisagreement(picture, setups) ? t("disagreement") : "");
    this.button("retry", isDone && failures.some(({ retryable }) => retryable));
    this.button("shrink", isDone && picture.canShrink && failures.some(({ shrinkable }) => shrinkable));
    this.button("copy-json", isAnswered);
    this.button("copy-curl", isAnswered);
  }

  /** One for each setup. */
  haveColumns() {
    if (this.drawn === this.setups) return;
    this.drawn = this.setups;
    this.columns = this.setups.map((setup) => new Column(this.picture, setup));
    this.part("columns").replaceChildren(...this.columns.map(({ element }) => element));
  }

  /** The answers in one sentence. */
  get summary() {
    const { picture, setups } = this;
    const said = setups.map((setup) => {
      const failure = picture.failure(setup);
      if (failure) return failure.explain(factsOf(setup).max_image_bytes);
      const { predictions, confident } = picture.answer(setup);
      const [{ label, probability }] = predictions;
      return `${label}, ${percent(probability)}.${confident ? "" : ` ${warning(setup)}`}`;
    });
    return `${picture.name}: ${said.join(" ")}`;
  }

  /** Show an image, a Blob; a sign in its place where the browser cannot. */
  view(blob) {
    if (blob === this.viewed) return;
    this.hide();
    this.viewed = blob;
    if (blob) {
      const image = new Image();
      image.alt = "";
      image.decoding = "async";
      image.src = this.url = URL.createObjectURL(blob);
      image.addEventListener("error", () => this.part("picture").replaceChildren(placeholder()));
      this.part("picture").replaceChildren(image);
    } else this.part("picture").replaceChildren(placeholder());
  }

  /** Hand back what the browser holds for the view. */
  hide() {
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = this.viewed = undefined;
  }

  part(name) {
    return this.element.querySelector(`.${name}`);
  }

  say(name, text) {
    say(this.part(name), text);
  }

  /** Each button names its image: a list of buttons is all that some people hear. */
  button(name, isOffered) {
    const button = this.part(name);
    button.hidden = !isOffered;
    if (!isOffered) return;
    button.textContent = t(button.dataset.text);
    button.ariaLabel = `${button.textContent}: ${this.picture.name}`;
  }
}

/** The size of a copy, in words. */
export function sizeOf({ file, width, height }) {
  return { width, height, size: megabytes(file.size) };
}

/** What stands for a picture that the browser cannot show, such as a TIFF. */
function placeholder() {
  const glyph = document.querySelector(".glyph").cloneNode(true);
  glyph.classList.add("placeholder");
  return glyph;
}
