import { factsOf } from "./facts.js";
import { Failure } from "./failure.js";
import { HeatMap } from "./heat.js";
import { shortName, t } from "./language.js";
import { post } from "./server.js";
import { say } from "./template.js";

/** The server's explanations: image data to key of a setup to the promise of an answer. */
const explained = new WeakMap();

/** A card's "Where?": which of its predictions is explained, and the map of that one. */
export class Where {
  /**
   * @param setup the setup whose best prediction is explained first.
   * @param note the element that says what the map shows.
   * @param onDrawn called each time the map is drawn.
   */
  constructor(picture, setup, note, onDrawn) {
    Object.assign(this, { picture, setup, rank: 0, note, onDrawn });
    this.canvas = document.createElement("canvas");
    this.canvas.role = "img";
    note.role = "status";
    this.show(setup, 0);
  }

  isShown(setup, rank) {
    return this.setup.key === setup.key && this.rank === rank;
  }

  /** Explain a prediction. */
  async show(setup, rank) {
    Object.assign(this, { setup, rank, state: "waiting" });
    this.render();
    try {
      const explanation = await this.explanation();
      this.map ??= HeatMap.over(this.picture.data, explanation.orientation);
      const map = await this.map;
      if (!this.isShown(setup, rank)) return;
      this.state = map.draw(this.canvas, explanation) ? "part" : "drawn";
      this.onDrawn();
    } catch (failure) {
      if (!(failure instanceof Failure)) throw failure;
      if (!this.isShown(setup, rank)) return;
      Object.assign(this, { state: "failed", failure });
    }
    this.render();
  }

  /** Say what is shown, in the person's language. */
  render() {
    const { setup, state, failure, prediction } = this;
    const label = prediction && shortName(prediction);
    say(
      this.note,
      failure && state === "failed"
        ? failure.explain(factsOf(setup).max_image_bytes)
        : t(`where.${state}`, { label }),
    );
    this.canvas.ariaLabel = this.note.textContent;
  }

  /** Remove the note, and show nothing that comes later. */
  end() {
    this.rank = undefined;
    say(this.note, "");
  }

  get prediction() {
    return this.picture.answer(this.setup)?.predictions[this.rank];
  }

  async explanation() {
    const { class_id } = this.prediction;
    const { predictions } = await explain(this.picture.data, this.setup);
    const found = predictions.find((prediction) => prediction.class_id === class_id);
    if (!found?.explanation) throw new Failure("unexplained");
    return found.explanation;
  }
}

/** Ask the server for an explanation, once for each image and setup unless that fails. */
function explain(data, setup) {
  if (!explained.has(data)) explained.set(data, new Map());
  const asked = explained.get(data);
  if (!asked.has(setup.key)) {
    const answer = askWhere(data, setup);
    answer.catch(() => asked.delete(setup.key));
    asked.set(setup.key, answer);
  }
  return asked.get(setup.key);
}

async function askWhere(data, setup) {
  const bytes = await data.arrayBuffer().catch(() => {
    throw new Failure("file_changed");
  });
  const { signal } = new AbortController();
  const [outcome] = await post(setup, [bytes], signal, { "X-Classify-Explain": "true" });
  if (outcome instanceof Failure) throw outcome;
  return outcome;
}
