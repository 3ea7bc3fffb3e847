const gallery = document.getElementById("examples");

/** Call back with a file when the person chooses one of the page's own photographs. */
export function examples(onFile) {
  gallery.addEventListener("click", ({ target }) => {
    const image = target.closest("button")?.querySelector("img");
    if (image) onFile(toFile(image));
  });
}

/** Choose one of the page's own photographs by its name, if there is such a one. */
export function chooseExample(name) {
  for (const image of gallery.querySelectorAll("img")) {
    if (image.dataset.name === name) image.closest("button").click();
  }
}

/** The name of the first picture that is one of the page's own photographs; undefined if none is. */
export function exampleAmong(pictures) {
  return pictures.find(({ file }) => made.has(file))?.name;
}

const made = new WeakSet();

/** Decode by hand: the page's policy lets it show a data URI, but not fetch one. */
function toFile({ src, dataset }) {
  const [head, data] = src.split(",");
  const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt());
  const file = new File([bytes], dataset.name, { type: head.slice(5, head.indexOf(";")) });
  made.add(file);
  return file;
}
