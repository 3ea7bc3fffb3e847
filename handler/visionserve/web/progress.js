const SILENCE = 5000;
const heard = document.getElementById("status");
const title = document.title;

let lastSaid = -SILENCE;
let timer;

/**
 * Announce the progress to screen readers, and show it in the tab's title.
 *
 * @param text the state in words; "" for nothing to say.
 * @param isPassing whether another state may follow soon; these are announced every five seconds.
 * @param short the same, shorter, for the title; "" for none.
 */
export function tell(text, isPassing, short) {
  const full = short ? `${short} – ${title}` : title;
  if (document.title !== full) document.title = full;
  clearTimeout(timer);
  if (heard.textContent === text) return;
  const wait = isPassing ? lastSaid + SILENCE - performance.now() : 0;
  const speak = () => {
    heard.textContent = text;
    lastSaid = performance.now();
  };
  if (wait > 0) timer = setTimeout(speak, wait);
  else speak();
}

/** Announce something short that is seen elsewhere. */
export function announce(text) {
  heard.textContent = text;
}

/** Announce a notice that is also visible, with a button if there is something to do about it. */
export function notify(text, { label, action } = {}) {
  const notice = document.getElementById("notice");
  notice.hidden = !text;
  notice.textContent = text;
  if (!label) return;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.addEventListener("click", action);
  notice.append(" ", button);
}
