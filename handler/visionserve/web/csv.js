const FORMULA = /^[=+\-@\t\r\n＝＋－＠]/;

/**
 * One row an image: file, label1, probability1, ..., error.
 *
 * A text that a spreadsheet would run as a formula gets an apostrophe in front:
 * https://owasp.org/www-community/attacks/CSV_Injection
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

function cell(value = "") {
  const text = typeof value === "string" && FORMULA.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
