import { photograph } from "./camera.js";
import { examples } from "./examples.js";
import { readChosen, readDropped } from "./folder.js";

const ADDRESS = /^(https?:|data:|\/\/)/i;

/**
 * Call back whenever the person drops, chooses, pastes or photographs images.
 *
 * @param onFound called with `images`, objects of `file` and `name`, and with `others`, how many
 *   files of a folder are not images.
 * @param onAddress called if only the address of an image was dropped or pasted.
 */
export function watchSources(onFound, onAddress) {
  const add = (files) => {
    const images = [...files].map((file) => ({ file, name: file.name }));
    if (images.length > 0) onFound({ images, others: 0 });
  };
  choice("picker", add);
  choice("capture", add);
  choice("folder-picker", (files) => onFound(readChosen(files)));
  click("choose", () => document.getElementById("picker").click());
  click("choose-folder", () => document.getElementById("folder-picker").click());
  click("camera", () => {
    if (navigator.mediaDevices?.getUserMedia) photograph((file) => add([file]));
    else document.getElementById("capture").click();
  });
  examples((file) => add([file]));
  document.addEventListener("paste", ({ clipboardData, target }) => {
    if (clipboardData.files.length > 0) add(clipboardData.files);
    else if (!target.matches?.("input") && isAddress(clipboardData, "text/plain")) onAddress();
  });
  document.addEventListener("dragover", (event) => {
    if (!isForUs(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    over(true);
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => {
    if (relatedTarget === null) over(false);
  });
  document.addEventListener("drop", async (event) => {
    if (!isForUs(event)) return;
    event.preventDefault();
    over(false);
    const { dataTransfer } = event;
    if (carriesFiles(event)) onFound(await readDropped(dataTransfer));
    else if (isAddress(dataTransfer, "text/uri-list")) onAddress();
  });
}

function choice(id, onFiles) {
  const input = document.getElementById(id);
  input.addEventListener("change", () => {
    onFiles([...input.files]);
    input.value = "";
  });
}

function click(id, action) {
  document.getElementById(id).addEventListener("click", action);
}

function isForUs(event) {
  return carriesFiles(event) || event.dataTransfer.types.includes("text/uri-list");
}

function carriesFiles({ dataTransfer }) {
  return dataTransfer.types.includes("Files");
}

function isAddress(transfer, type) {
  return ADDRESS.test(transfer.getData(type).trim());
}

function over(is) {
  document.body.classList.toggle("over", is);
}
