import { recall, remember } from "./memory.js";

const TOKEN = "visionserve-token";
const panel = document.getElementById("token-panel");
const field = document.getElementById("token");

/** The API token that the person entered, for this tab alone. */
export function token() {
  return recall("sessionStorage", TOKEN);
}

/** Open the field, after the server has refused a request. */
export function askForToken() {
  if (panel.open) return;
  panel.open = true;
  field.focus();
}

/** Call back after a token is entered. */
export function watchToken(onToken) {
  document.getElementById("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    remember("sessionStorage", TOKEN, field.value);
    onToken();
  });
}
