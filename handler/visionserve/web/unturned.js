const JPEG = 0xffd8;
const PNG = 0x89504e47;
const RIFF = 0x52494646;
const SEGMENT = 0xffe1;
const SCAN = 0xffda;
/** What EXIF data is called in a JPEG, a PNG and a WebP: "Exif", "eXIf" and "EXIF". */
const [IN_JPEG, IN_PNG, IN_WEBP] = [0x45786966, 0x65584966, 0x45584946];
/** A name that nobody looks for: "teSt". */
const HIDDEN = 0x74655374;

/**
 * Hide a photograph's EXIF data, so that every browser shows its pixels as they are stored: some
 * turn them upright in some formats alone.
 *
 * @param data an encoded photograph, a Blob.
 * @returns a Blob.
 */
export async function unturned(data) {
  const bytes = await data.arrayBuffer();
  const view = new DataView(bytes);
  const start = view.byteLength > 12 ? view.getUint32(0) : 0;
  if (start >>> 16 === JPEG) hideSegments(view);
  else if (start === PNG) hideChunks(view, 8, { type: 4, head: 12, isLittle: false }, IN_PNG);
  else if (start === RIFF) hideChunks(view, 12, { type: 0, head: 8, isLittle: true }, IN_WEBP);
  return new Blob([bytes], { type: data.type });
}

/** Rename the EXIF segments before the first scan. */
function hideSegments(view) {
  for (let at = 2; at + 10 < view.byteLength && view.getUint16(at) !== SCAN; ) {
    const isExif = view.getUint16(at) === SEGMENT && view.getUint32(at + 4) === IN_JPEG;
    if (isExif) view.setUint32(at + 4, HIDDEN);
    // A marker may be padded.
    at += view.getUint16(at) === 0xffff ? 1 : 2 + view.getUint16(at + 2);
  }
}

/**
 * Rename the EXIF chunks.
 *
 * @param form where in a chunk its type is, how many bytes it has beside its body, and the order of
 *   the bytes of its length.
 */
function hideChunks(view, start, { type, head, isLittle }, name) {
  for (let at = start; at + head <= view.byteLength; ) {
    const length = view.getUint32(at + 4 - type, isLittle);
    if (view.getUint32(at + type) === name) view.setUint32(at + type, HIDDEN);
    at += head + length + (isLittle ? length % 2 : 0);
  }
}
