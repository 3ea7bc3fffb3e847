import { facts } from "./facts.js";
import { Failure } from "./failure.js";

/** Longest sides of a copy, in pixels. Models see no more detail, and every server accepts it. */
const LONGEST = 2048;
const QUALITY = 0.9;
/** Formats that a server may leave out: how their files are named, and their types. */
const OPTIONAL = { AVIF: /\.avif$|^image\/avif/i, HEIC: /\.hei[cf]$|^image\/hei[cf]/i };

let last = Promise.resolve();

/** Whether a file has a format that a model of the server does not read, but the browser may. */
export function isForeign({ name, type }) {
  return Object.entries(OPTIONAL).some(
    ([format, pattern]) =>
      (pattern.test(name) || pattern.test(type)) &&
      facts.models.some(({ formats }) => !formats.includes(format)),
  );
}

/**
 * Save an image as a JPEG of at most 2,048 pixels a side, on white. Images are saved one at a
 * time, because the whole image is in memory meanwhile.
 *
 * @param signal aborts; the images that wait are then not saved.
 * @returns `file`, `width` and `height`; and `isForeign`, whether it was made for its format alone.
 * @throws {Failure} `undecodable`, or `save_as_jpeg`, where the browser cannot read the image.
 */
export function toJpeg(file, signal) {
  const made = last.then(() => {
    signal.throwIfAborted();
    return convert(file);
  });
  last = made.catch(() => {});
  return made;
}

async function convert(file) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Failure(isForeign(file) ? "save_as_jpeg" : "undecodable");
  });
  try {
    const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
    const width = Math.max(1, Math.round(bitmap.width * scale));
    const height = Math.max(1, Math.round(bitmap.height * scale));
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, width, height);
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: QUALITY });
    const copy = new File([blob], "copy.jpg", { type: blob.type });
    return { file: copy, width, height, isForeign: isForeign(file) };
  } finally {
    bitmap.close();
  }
}
