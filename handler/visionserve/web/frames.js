/** How much of a frame's 16 ms drawing may take, in milliseconds. */
const SHARE = 8;

const due = new Set();

/** Call an object's `render` once in one of the next frames, however often this is called. */
export function draw(drawn) {
  if (due.size === 0) requestAnimationFrame(drawSome);
  due.add(drawn);
}

/** Draw at once, without waiting for a frame. */
export function drawAll() {
  for (const drawn of due) drawn.render();
  due.clear();
}

function drawSome() {
  const end = performance.now() + SHARE;
  try {
    for (const drawn of due) {
      due.delete(drawn);
      drawn.render();
      if (performance.now() > end) break;
    }
  } finally {
    if (due.size > 0) requestAnimationFrame(drawSome);
  }
}

/**
 * Do something with each item, as many per frame as fit its share. A single item may take long,
 * because it waits for another process of the browser, which competes for the processor.
 *
 * @param signal aborts; the remaining items are then skipped.
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

/** Wait for the next frame, or 100 ms, because a background tab has no frames. */
function nextFrame() {
  return new Promise((go) => {
    requestAnimationFrame(go);
    setTimeout(go, 100);
  });
}
