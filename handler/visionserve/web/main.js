import { Card, megabytes } from "./card.js";
import { toCsv } from "./csv.js";
import { address, facts } from "./facts.js";
import { t, watchLanguage } from "./language.js";
import { limiter } from "./limiter.js";
import { predict } from "./server.js";
import { watchSources } from "./sources.js";
import { askForToken, watchToken } from "./token.js";

const CONCURRENCY = 2;

const byId = (id) => document.getElementById(id);
const inTurn = limiter(CONCURRENCY);
const runs = new Map();
let cards = [];

function add(files) {
  const added = files.map((file) => new Card(file, (card) => retry([card])));
  cards.push(...added);
  byId("cards").append(...added.map((card) => card.element));
  classifyAll(added);
  added[0]?.element.scrollIntoView({ block: "nearest" });
}

function classifyAll(chosen) {
  for (const card of chosen) classify(card);
  refresh();
}

/** Classify an image; a second call ends the first. */
async function classify(card) {
  runs.get(card)?.abort();
  const { signal } = runs.set(card, new AbortController()).get(card);
  const tta = byId("tta").value;
  card.show({ name: "waiting" });
  try {
    const answer = await inTurn(() => {
      signal.throwIfAborted();
      card.show({ name: "running" });
      return predict(card.file, tta, signal, () => card.show({ name: "busy" }));
    });
    card.show({ name: "done", answer });
  } catch (failure) {
    if (signal.aborted) return;
    card.show({ name: "failed", failure });
    if (failure.code === "unauthorized") askForToken();
  }
  refresh();
}

/** The button that was pressed goes; the focus moves to what it was about. */
function retry(chosen) {
  chosen[0].element.focus();
  classifyAll(chosen);
}

function failed() {
  return cards.filter((card) => card.failure);
}

function clear() {
  for (const card of cards) {
    runs.get(card).abort();
    card.discard();
  }
  cards = [];
  runs.clear();
  refresh();
  byId("choose").focus();
}

/** Bring everything around the cards up to date with them. */
function refresh() {
  const total = cards.length;
  const done = cards.filter((card) => card.settled).length;
  const failures = failed().length;
  document.body.classList.toggle("filled", total > 0);
  byId("cards").classList.toggle("single", total === 1);
  byId("results").hidden = total === 0;
  byId("download").disabled = done < total;
  byId("progress").hidden = total < 2;
  byId("retry-failed").hidden = total < 2 || failures === 0;
  const progress = t(failures ? "progressFailed" : "progress", { done, total, failures });
  byId("progress").textContent = progress;
  if (total === 0) announce("");
  else if (done < total) announce(t("state.running"));
  else announce(total === 1 ? cards[0].summary : progress);
}

/** Tell a screen reader, once. */
function announce(text) {
  if (byId("status").textContent !== text) byId("status").textContent = text;
}

function download() {
  const rows = cards.map(({ file, answer, error }) => ({
    file: file.name,
    predictions: answer?.predictions ?? [],
    error,
  }));
  const link = document.createElement("a");
  // Excel reads UTF-8 by its byte order mark.
  const blob = new Blob(["\ufeff", toCsv(rows, facts.defaults.top_k)], { type: "text/csv" });
  link.href = URL.createObjectURL(blob);
  link.download = "classifications.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function model(name) {
  const link = document.createElement("a");
  link.textContent = name;
  link.href = address(name);
  if (name === facts.model) link.ariaCurrent = "page";
  return link;
}

byId("models").append(...facts.models.map(model));
for (const fact of ["model", "version", "runtime"]) byId(`fact-${fact}`).textContent = facts[fact];
byId("tta").value = facts.defaults.tta;
byId("tta").addEventListener("change", () => classifyAll(cards));
byId("clear").addEventListener("click", clear);
byId("download").addEventListener("click", download);
byId("retry-failed").addEventListener("click", () => retry(failed()));
watchSources(add);
watchToken(() => classifyAll(failed().filter(({ failure }) => failure.code === "unauthorized")));
watchLanguage(() => {
  byId("limits").textContent = t("limits", { limit: megabytes(facts.max_image_bytes) });
  for (const card of cards) card.render();
  refresh();
});
