import { unfold } from "./folding.js";
import { recall, remember } from "./memory.js";

const TOKEN = "visionserve-token";
const panel = document.getElementById("token-panel");
const field = document.getElementById("token");

/** The API token that the person entered, for this tab alone. */
export function token() {
  return recall("sessionStorage", TOKEN);
}

/** Show the field, after the server has refused a request. Where none is refused, nobody sees it. */
export function askForToken() {
  if (panel.open) return;
  panel.hidden = false;
  panel.open = true;
  enterToken();
}

/** Go to the field. */
export function enterToken() {
  unfold();
  field.focus();
}

/** Call back after a token is entered. */
export function watchToken(onToken) {
  panel.hidden = !token();
  document.getElementById("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    remember("sessionStorage", TOKEN, field.value);
    onToken();
  });
}
