/** What the server says of itself; see Page.render. */
export const facts = JSON.parse(document.getElementById("facts").textContent);

const PREDICTIONS = "/predictions/";

/** The page of a model, and where its images go. */
export function address(model) {
  return PREDICTIONS + encodeURIComponent(model);
}

/** This page's own path, which may name a version; behind a proxy at /, the model's. */
export const endpoint = location.pathname.startsWith(PREDICTIONS)
  ? location.pathname
  : address(facts.model);
