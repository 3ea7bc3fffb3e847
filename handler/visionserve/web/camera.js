import { t } from "./language.js";

const dialog = document.getElementById("viewfinder");
const video = dialog.querySelector("video");
const notice = dialog.querySelector(".hint");
const shoot = document.getElementById("shoot");

/** Show what the camera sees, and call back with a JPEG file if the person takes a picture. */
export async function photograph(onFile) {
  shoot.disabled = true;
  notice.textContent = t("cameraWaiting");
  dialog.showModal();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment" },
    });
    if (!dialog.open) return release(stream);
    dialog.addEventListener("close", () => release(stream), { once: true });
    video.srcObject = stream;
    await video.play();
  } catch {
    notice.textContent = t("cameraRefused");
    return;
  }
  notice.textContent = "";
  shoot.disabled = false;
  shoot.onclick = async () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    dialog.close();
    const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    onFile(new File([blob], "camera.jpg", { type: blob.type }));
  };
}

function release(stream) {
  for (const track of stream.getTracks()) track.stop();
  video.srcObject = null;
}

document.getElementById("dismiss").addEventListener("click", () => dialog.close());
