import { countAnew } from "./picture.js";

/** The pictures that were removed last. They can come back until others are chosen. */
let removed = [];

/** Remember removed pictures in place of earlier ones. */
export function canUndo(pictures) {
  removed = pictures;
}

/** Take the removed pictures. */
export function takeBack() {
  const back = removed;
  removed = [];
  return back;
}

/** Forget removed pictures. @param isEmpty whether there are no others. */
export function cannotUndo(isEmpty) {
  removed = [];
  if (isEmpty) countAnew();
}
