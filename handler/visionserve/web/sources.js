import { photograph } from "./camera.js";

/** Call back with a list of files after each drop, choice, paste or photograph. */
export function watchSources(onFiles) {
  for (const input of document.querySelectorAll("#picker, #capture")) {
    input.addEventListener("change", () => {
      onFiles([...input.files]);
      input.value = "";
    });
  }
  click("choose", () => document.getElementById("picker").click());
  click("camera", () => {
    if (navigator.mediaDevices?.getUserMedia) photograph((file) => onFiles([file]));
    else document.getElementById("capture").click();
  });
  document.addEventListener("paste", ({ clipboardData }) => onFiles([...clipboardData.files]));
  document.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    over(true);
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => {
    if (relatedTarget === null) over(false);
  });
  document.addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    over(false);
    onFiles([...event.dataTransfer.files]);
  });
}

function click(id, action) {
  document.getElementById(id).addEventListener("click", action);
}

function carriesFiles({ dataTransfer }) {
  return dataTransfer.types.includes("Files");
}

function over(is) {
  document.getElementById("sources").classList.toggle("over", is);
}
