import { toCsv } from "./csv.js";
import { factsOf } from "./facts.js";
import { wholeName } from "./language.js";
import { toReport } from "./report.js";

/** The files that results can be saved as: their names' ends, types, and how they are written. */
const WRITERS = {
  // Excel recognizes UTF-8 by its byte order mark.
  csv: ["text/csv", async (rows) => ["\ufeff", toCsv(rows, wholeName)]],
  json: ["application/json", async (rows) => [JSON.stringify(rows.map(toObject), null, 2)]],
  html: ["text/html", async (rows) => [await toReport(rows)]],
};

const menu = document.getElementById("download");

/** Let the person save results. @param getPictures called for what to save: pictures and setups. */
export function watchDownload(getPictures) {
  menu.addEventListener("click", async ({ target }) => {
    if (!WRITERS[target.value]) return;
    menu.open = false;
    menu.querySelector("summary").focus();
    await saveAs(target.value, ...getPictures());
  });
  menu.addEventListener("keydown", ({ key }) => {
    if (key !== "Escape" || !menu.open) return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
  document.addEventListener("click", ({ target }) => {
    if (!menu.contains(target)) menu.open = false;
  });
}

async function saveAs(kind, pictures, setups) {
  const [type, write] = WRITERS[kind];
  const blob = new Blob(await write(toRows(pictures, setups)), { type });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `classifications.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** A row for each image and setup: `path`, `picture`, `answer` or `setup`, and `error`, a text. */
function toRows(pictures, setups) {
  return pictures.flatMap((picture) =>
    setups.map((setup) => {
      const failure = picture.failure(setup);
      const words = failure?.message || failure?.explain(factsOf(setup).max_image_bytes);
      const error = failure && `${failure.code}: ${words}`;
      return { path: picture.name, picture, answer: picture.answer(setup) ?? setup, error };
    }),
  );
}

function toObject({ path, answer, error }) {
  const { key, milliseconds, together, predictions, ...rest } = answer;
  const named = predictions?.map(({ english, name, ...prediction }) => ({
    ...prediction,
    name: wholeName({ ...prediction, english, name }),
  }));
  return { path, ...rest, ...(named && { predictions: named }), ...(error && { error }) };
}
