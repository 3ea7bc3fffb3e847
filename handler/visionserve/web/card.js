import { Column, labelled, warning } from "./column.js";
import { isDisagreement } from "./comparison.js";
import { factsOf } from "./facts.js";
import { fileSize, percent, shortName, t } from "./language.js";
import { announce } from "./progress.js";
import { clone, say } from "./template.js";
import { Where } from "./where.js";
import { reportable } from "./wrong.js";

/** How long a button says that it has copied, in milliseconds. */
const SHOWN = 2000;

/** One image on the page: its picture and a column for each setup. */
export class Card {
  constructor(picture, setups) {
    Object.assign(this, { picture, setups, columns: [] });
    /** Resolved once the picture has its place, so that nothing jumps any more. */
    this.placed = new Promise((done) => {
      this.onPlaced = done;
    });
    /** Resolved once each setup has its answer or failure, which make the card higher. */
    this.settled = new Promise((done) => {
      this.onSettled = done;
    });
    this.element = clone("card");
    this.element.dataset.id = picture.id;
    this.part("name").textContent = picture.name;
  }

  render() {
    const { picture, setups } = this;
    const isCompared = setups.length > 1;
    this.haveColumns();
    if (this.where && !this.explainable.includes(this.where.setup)) this.hideWhere();
    for (const column of this.columns) {
      column.render(isCompared);
      column.offer(this.where);
    }
    this.where?.render();
    const failures = setups.map((setup) => picture.failure(setup)).filter(Boolean);
    const isDone = setups.every((setup) => picture.isSettled(setup));
    const isAnswered = setups.some((setup) => picture.answer(setup));
    this.element.ariaBusy = String(!isDone);
    this.element.classList.toggle("compared", isCompared);
    this.say("note", picture.copy ? t(copyNote(picture.copy), sizeOf(picture.copy)) : "");
    this.say("disagreement", isDisagreement(picture, setups) ? t("disagreement") : "");
    this.button("retry", isDone && failures.some(({ retryable }) => retryable));
    this.button("where", this.explainable.length > 0);
    this.part("where").ariaPressed = String(Boolean(this.where));
    this.button("wrong", Boolean(reportable(picture, setups)));
    this.button("copy-json", isAnswered);
    this.button("copy-curl", isAnswered);
    this.button("remove", true);
    if (isDone) this.onSettled();
  }

  /** The setups that can explain their answers; none if the image is gone or cannot be shown. */
  get explainable() {
    const { picture, setups } = this;
    if (!picture.file || picture.thumbnail === null) return [];
    return setups.filter((setup) => picture.answer(setup) && factsOf(setup).explains);
  }

  /** Draw a map of where the model looked over the photograph, or remove it. */
  toggleWhere() {
    if (this.where) this.hideWhere();
    else {
      const [setup] = this.explainable;
      this.where = new Where(this.picture, setup, this.part("where-note"), () => this.showMap());
    }
    this.render();
  }

  showMap() {
    if (!this.where) return;
    this.part("picture").append(this.where.canvas);
    this.element.classList.add("explained");
    this.where.canvas.scrollIntoView({ block: "nearest" });
  }

  hideWhere() {
    this.where.end();
    this.where.canvas.remove();
    this.where = undefined;
    this.element.classList.remove("explained");
  }

  /** Make a column for each setup. */
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
      const answer = picture.answer(setup);
      const [best] = answer.predictions;
      const found = labelled(picture, setup) || `${shortName(best)}, ${percent(best.probability)}.`;
      return `${found} ${warning(setup, answer)}`.trim();
    });
    return `${picture.name}: ${said.join(" ")}`;
  }

  /** Show an image, a Blob, or a placeholder if the browser cannot show it. */
  view(blob) {
    if (blob === this.viewed) return;
    this.hide();
    this.viewed = blob;
    if (!blob) return this.place(placeholder());
    const image = new Image();
    image.alt = "";
    image.decoding = "async";
    const placed = (shown) => blob === this.viewed && this.place(shown);
    this.loaded = new Promise((done) => {
      image.addEventListener("error", () => done(placed(placeholder())));
      image.addEventListener("load", () => done(placed(image)));
    });
    image.src = this.url = URL.createObjectURL(blob);
  }

  /** Put the picture into the card, below a map if there is one, in a place of its proportions. */
  place(shown) {
    const map = this.element.classList.contains("explained") ? [this.where.canvas] : [];
    const { naturalWidth, naturalHeight } = shown;
    const ratio = naturalWidth ? `${naturalWidth} / ${naturalHeight}` : "";
    this.part("picture").style.setProperty("--ratio", ratio);
    this.part("picture").replaceChildren(shown, ...map);
    this.onPlaced();
  }

  /** Say at a button that it has copied. */
  copied(name) {
    const button = this.part(name);
    announce(t("copied"));
    button.textContent = t("copied");
    setTimeout(() => {
      button.textContent = t(button.dataset.text);
    }, SHOWN);
  }

  /** Free what the browser keeps in memory for the view, once it has read it. */
  hide() {
    const { url } = this;
    if (url) this.loaded.then(() => URL.revokeObjectURL(url));
    this.url = this.viewed = undefined;
  }

  part(name) {
    return this.element.querySelector(`.${name}`);
  }

  say(name, text) {
    say(this.part(name), text);
  }

  /** Name the image in each button's label: people with a screen reader may hear buttons alone. */
  button(name, isOffered) {
    const button = this.part(name);
    button.hidden = !isOffered;
    if (!isOffered) return;
    button.textContent = t(button.dataset.text);
    button.ariaLabel = `${button.textContent}: ${this.picture.name}`;
  }
}

/** The size of a copy, in words. */
function sizeOf({ file, width, height }) {
  return { width, height, size: fileSize(file.size) };
}

/** Why a copy was sent: for the image's format, or its size. */
function copyNote({ isForeign: isOfFormat }) {
  return isOfFormat ? "copySent" : "smallerSent";
}

/** A placeholder for a picture that the browser cannot show, such as a TIFF. */
function placeholder() {
  const glyph = document.querySelector(".glyph").cloneNode(true);
  glyph.classList.add("placeholder");
  return glyph;
}
