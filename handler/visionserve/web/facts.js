/** What the server says about itself and its models; see Page.render. */
export const facts = JSON.parse(document.getElementById("facts").textContent);

const PREDICTIONS = "/predictions/";

/** The path of the page, which may name a version; or of its model, if a proxy serves it at /. */
const home = location.pathname.startsWith(PREDICTIONS)
  ? location.pathname
  : PREDICTIONS + encodeURIComponent(facts.model);

/** Facts about a version of a model; the page's own if the server no longer has that version. */
export function factsOf({ model, version }) {
  const same = (other) => other.model === model && other.version === version;
  return facts.models.find(same) ?? facts.models.find(isHome) ?? facts.models[0];
}

/** Whether a model has several versions, so that its name alone is ambiguous. */
export function isAmbiguous(model) {
  return facts.models.filter((other) => other.model === model).length > 1;
}

/**
 * The path for images of a model's version. For the page's own version it is the page's path, so
 * that a page whose path names no version follows the server to a new default version.
 */
export function endpoint({ model, version }) {
  if (isHome({ model, version })) return home;
  const parts = isAmbiguous(model) ? [model, version] : [model];
  return PREDICTIONS + parts.map(encodeURIComponent).join("/");
}

const entrance = location.pathname;

/** The path of a version's page; for the page's own version, the path that was opened. */
export function pageOf(setup) {
  return isHome(setup) ? entrance : endpoint(setup);
}

function isHome({ model, version }) {
  return model === facts.model && version === facts.version;
}
