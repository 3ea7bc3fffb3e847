/** Call back with a file where a person chooses one of the photographs that the page brings. */
export function examples(onFile) {
  document.getElementById("examples").addEventListener("click", ({ target }) => {
    const image = target.closest("button")?.querySelector("img");
    if (image) onFile(toFile(image));
  });
}

/** The policy lets the page show a data URI, but not fetch it. */
function toFile({ src, dataset }) {
  const [head, data] = src.split(",");
  const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt());
  return new File([bytes], dataset.name, { type: head.slice(5, head.indexOf(";")) });
}
