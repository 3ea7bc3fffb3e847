/** The files to look for in a folder: images that the server reads, or that the page converts. */
const IMAGE = /\.(jpe?g|png|webp|gif|bmp|tiff?|avif|hei[cf])$/i;

/**
 * Read what was dropped, and everything in dropped folders.
 *
 * @returns `images`, objects of `file` and `name`, in order of their paths within a folder; and
 *   `others`, how many of the folders' files are not images.
 */
export async function readDropped(transfer) {
  // Entries are read first, because the list is empty once the event is over.
  const entries = [...transfer.items]
    .filter(({ kind }) => kind === "file")
    .map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const found = { images: [], others: 0 };
  for (const entry of entries) {
    if (entry.isDirectory) await readFolder(entry, found);
    else found.images.push(named(entry.isFile ? await fileOf(entry) : entry));
  }
  return found;
}

/** The images of a chosen folder. @returns as `readDropped` does. */
export function readChosen(files) {
  const images = [...files].filter(({ name }) => isImage(name)).map(named);
  images.sort((one, other) => (one.name < other.name ? -1 : 1));
  return { images, others: files.length - images.length };
}

async function readFolder(folder, found) {
  const entries = await entriesOf(folder);
  entries.sort((one, other) => (one.name < other.name ? -1 : 1));
  for (const entry of entries) {
    if (entry.isDirectory) await readFolder(entry, found);
    else if (!isImage(entry.name)) found.others += 1;
    else found.images.push({ file: await fileOf(entry), name: entry.fullPath.slice(1) });
  }
}

/** Read all entries; a reader returns a hundred at a time. */
async function entriesOf(folder) {
  const reader = folder.createReader();
  const all = [];
  for (;;) {
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (some.length === 0) return all;
    all.push(...some);
  }
}

/** Get an entry's file. If it no longer exists, reading it fails later. */
function fileOf(entry) {
  return new Promise((resolve) => entry.file(resolve, () => resolve(new File([], entry.name))));
}

function isImage(name) {
  return IMAGE.test(name) && !name.startsWith("._");
}

function named(file) {
  return { file, name: file.webkitRelativePath || file.name };
}
