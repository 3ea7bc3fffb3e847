/** Call back with a file when the person chooses one of the page's own photographs. */
export function examples(onFile) {
  document.getElementById("examples").addEventListener("click", ({ target }) => {
    const image = target.closest("button")?.querySelector("img");
    if (image) onFile(toFile(image));
  });
}

/** Decode by hand: the page's policy lets it show a data URI, but not fetch one. */
function toFile({ src, dataset }) {
  const [head, data] = src.split(",");
  const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt());
  return new File([bytes], dataset.name, { type: head.slice(5, head.indexOf(";")) });
}
