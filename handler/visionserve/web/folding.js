const toggle = document.getElementById("options-toggle");
const folded = document.getElementById("options");

/** On a phone, let the person open the options, which are folded into one line. */
export function watchFolding() {
  toggle.addEventListener("click", () => fold(folded.classList.contains("open")));
}

/** Open the options. */
export function unfold() {
  fold(false);
}

/** Say in the folded line what is chosen. */
export function renderFolding(text) {
  toggle.firstElementChild.textContent = text;
}

function fold(is) {
  folded.classList.toggle("open", !is);
  toggle.ariaExpanded = String(!is);
}
