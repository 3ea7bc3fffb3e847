const kept = new Map();

/** Read a value from localStorage or sessionStorage; null if there is none. */
export function recall(storage, key) {
  try {
    return window[storage].getItem(key);
  } catch {
    return kept.get(key) ?? null;
  }
}

/** Store a value. If the browser blocks storage, it lasts until the page closes. */
export function remember(storage, key, value) {
  try {
    window[storage].setItem(key, value);
  } catch {
    kept.set(key, value);
  }
}
