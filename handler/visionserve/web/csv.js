const FORMULA = /^[=+\-@\t\r\n＝＋－＠]/;

/**
 * One row an image: file, label1, probability1, ..., error.
 *
 * A text that a spreadsheet would run as a formula gets an apostrophe in front:
 * https://owasp.org/www-community/attacks/CSV_Injection. `scripts/formats.py` has the same rule.
 *
 * @param images objects of `file` (name), `predictions` (may be empty) and `error` (may be "").
 * @param count predictions a row.
 */
export function toCsv(images, count) {
  const ranks = Array.from({ length: count }, (_, index) => index);
  const head = ranks.flatMap((rank) => [`label${rank + 1}`, `probability${rank + 1}`]);
  const rows = images.map(({ file, predictions, error }) => [
    file,
    ...ranks.flatMap((rank) => [predictions[rank]?.label, predictions[rank]?.probability]),
    error,
  ]);
  return [["file", ...head, "error"], ...rows].map((row) => `${row.map(cell).join()}\r\n`).join("");
}

/** A field: text in quotes, so that one with a semicolon stays whole where that separates. */
export function cell(value) {
  if (typeof value === "number") return String(value);
  const text = String(value ?? "");
  return `"${FORMULA.test(text) ? "'" : ""}${text.replaceAll('"', '""')}"`;
}
