const kept = new Map();

/** A value of localStorage or sessionStorage; null without one. */
export function recall(storage, key) {
  try {
    return window[storage].getItem(key);
  } catch {
    return kept.get(key) ?? null;
  }
}

/** Keep a value; a browser that blocks storage keeps it until the page closes. */
export function remember(storage, key, value) {
  try {
    window[storage].setItem(key, value);
  } catch {
    kept.set(key, value);
  }
}
