/** What the server says of itself and of its models; see Page.render. */
export const facts = JSON.parse(document.getElementById("facts").textContent);

const PREDICTIONS = "/predictions/";

/** The page's own path, which may name a version; behind a proxy at /, that of its model. */
const home = location.pathname.startsWith(PREDICTIONS)
  ? location.pathname
  : PREDICTIONS + encodeURIComponent(facts.model);

/** What the server says of a model's version; of the page's own where it no longer has it. */
export function factsOf({ model, version }) {
  const same = (other) => other.model === model && other.version === version;
  return facts.models.find(same) ?? facts.models.find(isHome) ?? facts.models[0];
}

/** Whether a model has several versions, so that its name alone does not tell which is meant. */
export function isAmbiguous(model) {
  return facts.models.filter((other) => other.model === model).length > 1;
}

/**
 * Where images for a model's version go. The page's own is asked as the page was, so that a page
 * that names no version follows the server to its new default.
 */
export function endpoint({ model, version }) {
  if (isHome({ model, version })) return home;
  const parts = isAmbiguous(model) ? [model, version] : [model];
  return PREDICTIONS + parts.map(encodeURIComponent).join("/");
}

const entrance = location.pathname;

/** The page of a model's version; the one that was opened, as it was. */
export function pageOf(setup) {
  return isHome(setup) ? entrance : endpoint(setup);
}

function isHome({ model, version }) {
  return model === facts.model && version === facts.version;
}
