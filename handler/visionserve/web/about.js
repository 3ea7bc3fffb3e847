import { factsOf } from "./facts.js";
import { Failure } from "./failure.js";
import { fileSize, isNamed, percent, plain, t } from "./language.js";
import { describe } from "./server.js";
import { say } from "./template.js";

const about = document.getElementById("about");
const search = document.getElementById("class-search");
const classes = document.getElementById("classes");
const found = document.getElementById("classes-found");
const cardOf = document.getElementById("model-card");

let subject, shownCard, shownClasses;

/** Let people ask what a model can recognise. It is loaded when they do, not with the page. */
export function watchAbout() {
  about.addEventListener("toggle", load);
  search.addEventListener("input", renderClasses);
}

/** Say how many classes the model of a setup has, in the person's language. */
export function renderAbout(setup) {
  subject = setup;
  const { classes: count, multi_label } = factsOf(setup);
  const values = { count: plain(count) };
  document.getElementById("about-count").textContent = t(
    multi_label ? "about.labels" : "about.classes",
    values,
  );
  for (const name of ["share", "guess"]) {
    document.getElementById(`about-${name}`).textContent = t(
      multi_label ? `about.${name}.labels` : `about.${name}`,
      { threshold: percent(factsOf(setup).defaults.threshold ?? 0.5, 0) },
    );
  }
  if (about.open) load();
}

async function load() {
  if (!about.open) return;
  const { model, version } = subject;
  const isWanted = () => subject.model === model && subject.version === version;
  try {
    say(found, t("about.loading"));
    const wanted = ["card", "classes"].map((name) => describe(subject, name));
    const [card, { classes: all }] = await Promise.all(wanted);
    if (!isWanted()) return;
    [shownCard, shownClasses] = [card, all];
    renderCard();
    renderClasses();
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    if (isWanted()) say(found, failure.explain(0));
  }
}

/** List the classes in which the searched words are, in either language. */
function renderClasses() {
  if (!shownClasses) return;
  const words = search.value.trim().toLowerCase();
  const matching = shownClasses.filter((one) => textOf(one).includes(words));
  say(
    found,
    t("about.found", { count: plain(matching.length), total: plain(shownClasses.length) }),
  );
  classes.replaceChildren(...matching.map(toItem));
}

function textOf({ label, names, wordnet_id = "" }) {
  return [label, names.en, names.zh, wordnet_id].join("\n").toLowerCase();
}

/** A class as a line: its name in the person's language, then in the other one. */
function toItem({ label, names, wordnet_id, sums }) {
  const item = document.createElement("li");
  const english = names.en ?? label;
  const [name, other] = isNamed() ? [names.zh ?? english, english] : [english, names.zh];
  item.textContent = name;
  if (other && other !== name) {
    const second = document.createElement("span");
    second.textContent = ` ${other}`;
    item.append(second);
  }
  const sum = sums ? t("about.sum", { count: plain(sums) }) : "";
  item.title = [label, wordnet_id, sum].filter(Boolean).join(" · ");
  return item;
}

function renderCard() {
  const { architecture, weights, runtime, precision, proof, training, comparison } = shownCard;
  const { limits } = shownCard;
  const rows = {
    network: architecture,
    weights: `${weights.source} (SHA-256 ${weights.sha256.slice(0, 12)}…)`,
    precision: `${precision}, ${runtime}`,
    proof:
      proof && t("card.agrees", { share: percent(proof.agreement), views: plain(proof.views) }),
    training:
      training && t("card.top1", { share: percent(training.top1.value), date: training.date }),
    comparison:
      comparison &&
      t("card.compared", {
        share: percent(comparison.agreement),
        photographs: plain(comparison.photographs),
      }),
    unfamiliar: t(shownCard.familiarity ? "card.tells" : "card.tellsNot"),
    limits: t("card.upTo", {
      size: fileSize(limits.max_image_bytes),
      pixels: plain(limits.max_image_pixels / 1e6),
    }),
  };
  const lines = Object.entries(rows).filter(([, text]) => text);
  cardOf.replaceChildren(
    ...lines.map(([name, text]) => {
      const [row, term, value] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
      term.textContent = t(`card.${name}`);
      value.textContent = text;
      row.append(term, value);
      return row;
    }),
  );
}
