const WIDTH = 256;

const urgent = [];
const later = [];
let isWorking = false;

/**
 * Make an image small, once, so that the browser can forget the whole one: a page of photographs
 * would hold hundreds of megabytes. One at a time, as each is decoded in full for a moment.
 *
 * @param file an image.
 * @param isWanted asked before the work; false where the image is gone.
 * @param onDone called with a WebP Blob, or with null where the browser cannot read the image.
 * @param isSeen whether a person waits for it; the others come when nothing else is to be done.
 */
export function shrinkForView(file, isWanted, onDone, isSeen) {
  (isSeen ? urgent : later).push({ file, isWanted, onDone });
  work();
}

async function work() {
  if (isWorking) return;
  isWorking = true;
  while (urgent.length || later.length) {
    const { file, isWanted, onDone } = urgent.shift() ?? later.shift();
    if (isWanted()) onDone(await small(file).catch(() => null));
  }
  isWorking = false;
}

async function small(file) {
  const bitmap = await createImageBitmap(file, { resizeWidth: WIDTH, resizeQuality: "medium" });
  try {
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    return await canvas.convertToBlob({ type: "image/webp", quality: 0.8 });
  } finally {
    bitmap.close();
  }
}
