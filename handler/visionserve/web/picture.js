/** How far an image is that nobody has asked about yet. */
export const WAITING = { name: "waiting" };

let lastId = 0;

/** One image, and what each setup has made of it. */
export class Picture {
  /**
   * @param file the image; null where only its thumbnail and answers are left of it.
   * @param name its name, or its path in a folder.
   */
  constructor(file, name, id = lastId + 1) {
    this.file = file;
    this.name = name;
    this.id = lastId = Math.max(id, lastId);
    // Each look at a file's size or time asks the browser's other processes, and waits for them.
    this.fileSize = file?.size;
    this.modified = file?.lastModified;
    /** A small copy as a Blob; null where the browser cannot read the image. */
    this.thumbnail = undefined;
    /** The copy that is sent in place of the file, and its size; see `toJpeg`. */
    this.copy = null;
    this.states = new Map();
  }

  /** What is sent. */
  get data() {
    return this.copy?.file ?? this.file;
  }

  /** Bytes of what is sent. */
  get size() {
    return this.copy?.file.size ?? this.fileSize;
  }

  /** Whether the file is no longer what was chosen: some browsers would read it all the same. */
  get hasChanged() {
    return !this.copy && this.file.lastModified !== this.modified;
  }

  /** Whether a smaller copy of the file can be tried. */
  get canShrink() {
    return Boolean(this.file) && !this.copy;
  }

  /**
   * @returns `name`: waiting, shrinking, running, busy, away, done (with `answer`) or failed (with `failure`).
   */
  state(setup) {
    return this.states.get(setup.key) ?? WAITING;
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

  /** The best prediction, or undefined. */
  best(setup) {
    return this.answer(setup)?.predictions[0];
  }

  /** Its label, or undefined. */
  label(setup) {
    return this.best(setup)?.label;
  }
}
