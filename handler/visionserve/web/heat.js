import { Failure } from "./failure.js";
import { unturned } from "./unturned.js";

const MAP_SIDE = 640;
const OPACITY = 0.5;
/** A model that sees less than this share of the photograph has the edge of its part drawn. */
const WHOLE = 0.97;
/** Dark blue, red and yellow, as `visionserve.explanation` draws a map: least, middle, most. */
const STOPS = [
  [0, 0, 77],
  [212, 20, 90],
  [255, 225, 77],
];
const PALETTE = Array.from({ length: 256 }, (_, value) => blend(value / 127.5));

/** How to turn a stored picture of given sides upright, by its EXIF orientation, for a canvas. */
const TURNS = {
  1: () => [1, 0, 0, 1, 0, 0],
  2: (width) => [-1, 0, 0, 1, width, 0],
  3: (width, height) => [-1, 0, 0, -1, width, height],
  4: (_, height) => [1, 0, 0, -1, 0, height],
  5: () => [0, 1, 1, 0, 0, 0],
  6: (_, height) => [0, 1, -1, 0, height, 0],
  7: (width, height) => [0, -1, -1, 0, height, width],
  8: (width) => [0, -1, 1, 0, 0, width],
};

/** A photograph with a map over it of where a model looked. */
export class HeatMap {
  /**
   * @param data an encoded photograph.
   * @param orientation how it is stored, from 1 (upright) to 8, as the server has turned it.
   * @throws {Failure} `undecodable` where the browser cannot read it.
   */
  static async over(data, orientation) {
    const bitmap = await unturned(data)
      .then(createImageBitmap)
      .catch(() => {
        throw new Failure("undecodable");
      });
    const scale = Math.min(1, MAP_SIDE / Math.max(bitmap.width, bitmap.height));
    const sides = [bitmap.width, bitmap.height].map((side) =>
      Math.max(1, Math.round(side * scale)),
    );
    const photograph = new OffscreenCanvas(...(orientation > 4 ? [...sides].reverse() : sides));
    const context = photograph.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.setTransform(...TURNS[orientation](...sides));
    context.drawImage(bitmap, 0, 0, ...sides);
    bitmap.close();
    return Object.assign(new HeatMap(), { photograph, scale });
  }

  /**
   * Draw on a canvas, and give it the photograph's size.
   *
   * @param explanation `grid`, rows of numbers, and `box`, left, top, right and bottom of the
   *   part of the photograph that the grid covers, in pixels.
   * @returns whether the model has seen only a part of the photograph, whose edge is then drawn.
   */
  draw(canvas, { grid, box }) {
    const { photograph, scale } = this;
    const [left, top, right, bottom] = box.map((side) => Math.round(side * scale));
    const heat = colour(grid, Math.max(1, right - left), Math.max(1, bottom - top));
    [canvas.width, canvas.height] = [photograph.width, photograph.height];
    const context = canvas.getContext("2d");
    context.drawImage(photograph, 0, 0);
    context.globalAlpha = OPACITY;
    context.drawImage(heat, left, top);
    const [width, height] = [right - left, bottom - top];
    const isPart = width * height < WHOLE * canvas.width * canvas.height;
    if (isPart) frame(context, left, top, width, height);
    return isPart;
  }
}

/** A light line inside a dark one, which shows on every photograph. */
function frame(context, left, top, width, height) {
  context.globalAlpha = 1;
  for (const [colour, inset] of [
    ["#000", 1.5],
    ["#fff", 4.5],
  ]) {
    context.strokeStyle = colour;
    context.lineWidth = 3;
    context.strokeRect(left + inset, top + inset, width - 2 * inset, height - 2 * inset);
  }
}

/** A grid as a picture: its least value gets the first colour, its greatest the last. */
function colour(grid, width, height) {
  const values = grid.flat();
  const least = Math.min(...values);
  const span = Math.max(Math.max(...values) - least, 1e-6);
  const shades = new ImageData(grid[0].length, grid.length);
  values.forEach((value, index) => {
    const shade = (255 * (value - least)) / span;
    shades.data.set([shade, shade, shade, 255], 4 * index);
  });
  const small = new OffscreenCanvas(shades.width, shades.height);
  small.getContext("2d").putImageData(shades, 0, 0);
  const large = new OffscreenCanvas(width, height);
  const context = large.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let index = 0; index < pixels.data.length; index += 4) {
    pixels.data.set(PALETTE[pixels.data[index]], index);
  }
  context.putImageData(pixels, 0, 0);
  return large;
}

/** The colour at a position along STOPS, from 0 to 2. */
function blend(place) {
  const from = Math.min(Math.floor(place), 1);
  return STOPS[from].map((start, part) => start + (place - from) * (STOPS[from + 1][part] - start));
}
