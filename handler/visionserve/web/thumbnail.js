const WIDTH = 256;

const urgent = [];
const later = [];
let isWorking = false;

/**
 * Make a small copy of an image, once, so that the browser can free the whole one: a page of
 * photographs would take hundreds of megabytes. Copies are made one at a time, because each image
 * is decoded in full for a moment.
 *
 * @param file an image.
 * @param isWanted called before the work; returns false if the image has been removed.
 * @param onDone called with a WebP Blob, or with null if the browser cannot read the image.
 * @param isSeen whether the image is on the screen; others come after those that are.
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
