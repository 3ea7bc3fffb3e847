/** Share of a frame's 16 ms that may go into drawing, in milliseconds. */
const SHARE = 8;

const due = new Set();

/** Call an object's `render` in one of the next frames, however often that is asked for. */
export function draw(drawn) {
  if (due.size === 0) requestAnimationFrame(drawSome);
  due.add(drawn);
}

/** Draw at once what cannot wait. */
export function drawAll() {
  for (const drawn of due) drawn.render();
  due.clear();
}

function drawSome() {
  const end = performance.now() + SHARE;
  for (const drawn of due) {
    due.delete(drawn);
    drawn.render();
    if (performance.now() > end) break;
  }
  if (due.size > 0) requestAnimationFrame(drawSome);
}

/**
 * Do something with each item, as many in a frame as its share allows: one may wait for another
 * of the browser's processes, which takes long where others want the processor.
 *
 * @param signal aborts; the rest is then left.
 */
export async function inFrames(items, signal, action) {
  let end = performance.now() + SHARE;
  for (const item of items) {
    if (performance.now() > end) {
      await nextFrame();
      end = performance.now() + SHARE;
    }
    if (signal.aborted) return;
    action(item);
  }
}

/** Wait for the next frame; a tab in the background has none. */
function nextFrame() {
  return new Promise((go) => {
    requestAnimationFrame(go);
    setTimeout(go, 100);
  });
}
