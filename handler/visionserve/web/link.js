import { facts, pageOf } from "./facts.js";

/**
 * The page's address with options in its fragment, which browsers do not send: the first setup's
 * views, the setups to compare it with, and the name of one of the page's own photographs. A
 * person's pictures are never in it.
 */
export function linkTo([first, ...others], example) {
  const options = new URLSearchParams({ tta: first.tta });
  for (const { model, version, tta } of others) {
    options.append("with", JSON.stringify([model, version, tta]));
  }
  if (example) options.set("example", example);
  return `${location.origin}${pageOf(first)}#${options}`;
}

/** The options of the address that was opened: `setups`, if there are any, and `example`. */
export const linked = readLink(location.hash.slice(1));

function readLink(fragment) {
  const options = new URLSearchParams(fragment);
  const example = options.get("example");
  if (!options.has("tta")) return { setups: undefined, example };
  const first = { model: facts.model, version: facts.version, tta: options.get("tta") };
  return {
    setups: [first, ...options.getAll("with").map(toSetupOrNothing)].filter(Boolean),
    example,
  };
}

function toSetupOrNothing(text) {
  try {
    const [model, version, tta] = JSON.parse(text);
    return { model, version, tta };
  } catch {
    return undefined;
  }
}
