const FORMULA = /(^|[;\t\r\n])(?=[ "]*[=+\-@\t\r\n＝＋－＠])/g;

/**
 * The columns of `visionserve classify`: a row for each image and setup.
 *
 * An apostrophe goes before whatever a spreadsheet would run as a formula:
 * https://owasp.org/www-community/attacks/CSV_Injection. A spreadsheet that expects semicolons
 * splits texts at them, so each part of a text is checked.
 * `visionserve_tools/batch/formats.py` has the same rule.
 *
 * @param rows objects of `path`, and of `answer` or `error`, a text.
 * @param named what a prediction's class is called.
 */
export function toCsv(rows, named) {
  const count = Math.max(0, ...rows.map(({ answer }) => answer?.predictions?.length ?? 0)) || 3;
  const ranks = Array.from({ length: count }, (_, index) => index);
  const head = ranks.flatMap((rank) =>
    ["label", "class_id", "probability"].map((name) => `${name}_${rank + 1}`),
  );
  const rest = ["model", "version", "tta", "confident"];
  const lines = rows.map(({ path, answer = {}, error }) => [
    path,
    ...ranks.flatMap((rank) => {
      const prediction = answer.predictions?.[rank];
      return [prediction && named(prediction), prediction?.class_id, prediction?.probability];
    }),
    ...rest.map((name) => answer[name]),
    answer.labels?.join(";"),
    answer.unfamiliar,
    answer.plausible,
    answer.hints?.join(" "),
    error,
  ]);
  const more = ["labels", "unfamiliar", "plausible", "hints", "error"];
  return [["path", ...head, ...rest, ...more], ...lines]
    .map((line) => `${line.map(cell).join()}\r\n`)
    .join("");
}

/** A field: a number as it is, a text in quotes. */
export function cell(value) {
  if (typeof value === "number") return String(value);
  return `"${String(value ?? "")
    .replace(FORMULA, "$1'")
    .replaceAll('"', '""')}"`;
}
