/** The state of an image before anybody asks about it. */
export const WAITING = { name: "waiting" };
/** Its state while a copy of it is made. */
const SHRINKING = { name: "shrinking" };

let lastId = 0;

/** Number the next pictures from 1 again, once there are no others. */
export function countAnew() {
  lastId = 0;
}

/** One image, and its state in each setup. */
export class Picture {
  /**
   * @param file the image; null if only its thumbnail and answers are left.
   * @param name its name, or its path in a folder.
   */
  constructor(file, name, id = lastId + 1) {
    this.file = file;
    this.name = name;
    this.id = lastId = Math.max(id, lastId);
    // Read once: each access to a file's size or time waits for another process of the browser.
    this.fileSize = file?.size;
    this.modified = file?.lastModified;
    /** A small copy as a Blob; null if the browser cannot read the image. */
    this.thumbnail = undefined;
    /** The copy that is sent in place of the file, with its width and height; see `toJpeg`. */
    this.copy = null;
    /** Whether that copy is being made; nothing is sent meanwhile. */
    this.isShrinking = false;
    this.states = new Map();
  }

  /** The Blob to send. */
  get data() {
    return this.copy?.file ?? this.file;
  }

  /** How many bytes are sent. */
  get size() {
    return this.copy?.file.size ?? this.fileSize;
  }

  /** Whether the file has changed since it was chosen; some browsers would read it anyway. */
  get hasChanged() {
    return !this.copy && this.file.lastModified !== this.modified;
  }

  /** Whether a smaller copy of the file can be tried. */
  get canShrink() {
    return Boolean(this.file) && !this.copy;
  }

  /**
   * @returns `name`: waiting, shrinking, running, done (with `answer`) or failed (with `failure`).
   */
  state(setup) {
    return this.states.get(setup.key) ?? (this.isShrinking ? SHRINKING : WAITING);
  }

  answer(setup) {
    return this.states.get(setup.key)?.answer;
  }

  failure(setup) {
    return this.states.get(setup.key)?.failure;
  }

  isSettled(setup) {
    return Boolean(this.answer(setup) ?? this.failure(setup));
  }

  /** Whether a file is the one that this picture had before the page was loaded anew. */
  awaits(file, name) {
    const isSame = this.fileSize === file.size && this.modified === file.lastModified;
    return !this.file && this.name === name && isSame;
  }

  /** Have its file again. */
  regain(file) {
    this.file = file;
    this.copy = null;
    this.thumbnail ??= undefined;
    this.forgetFailures();
  }

  forgetFailures() {
    for (const [key, { failure }] of this.states) if (failure) this.states.delete(key);
  }

  /** The best prediction, or undefined. */
  best(setup) {
    return this.answer(setup)?.predictions[0];
  }

  /** What the image is said to show: the best prediction, or each label of a multi-label model. */
  found(setup) {
    const { labels, predictions } = this.answer(setup) ?? { predictions: [] };
    if (!labels) return predictions.slice(0, 1);
    return labels.map((label) => predictions.find((one) => one.label === label) ?? { label });
  }

  /** The labels of that as one text, the same for the same labels; undefined without an answer. */
  verdict(setup) {
    const found = this.found(setup).map(({ label }) => label);
    return this.answer(setup) && JSON.stringify(found.sort());
  }
}
