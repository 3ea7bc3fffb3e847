import { endpoint, facts, factsOf } from "./facts.js";
import { isNamed, NAMED, percent } from "./language.js";
import { token } from "./token.js";

/** An image's answers, one or a list, as the server would give them in the person's language. */
export function asJson(picture, setups) {
  const answers = setups
    .filter((setup) => picture.answer(setup))
    .map((setup) => {
      const { milliseconds, together, ...answer } = picture.answer(setup);
      const localized = { ...answer, predictions: answer.predictions.map(inLanguage) };
      return isNamed() ? localized : warnedInEnglish(localized, setup);
    });
  return JSON.stringify(answers.length === 1 ? answers[0] : answers, null, 2);
}

/** A prediction with the name that it has in the person's language, if any. */
function inLanguage({ label, name, english, ...rest }) {
  const shown = isNamed() ? name : english;
  return { label, ...(shown && { name: shown }), ...rest };
}

/** The page asks for answers in the other language. */
function warnedInEnglish(answer, setup) {
  if (!("warning" in answer)) return answer;
  const { threshold } = factsOf(setup).defaults;
  const guess = answer.labels ? facts.noLabel : facts.warning.replace("{}", percent(threshold, 0));
  const causes = (answer.hints ?? []).map((hint) => facts.hints.en[hint]);
  const doubt = answer.unfamiliar ? facts.unfamiliar : guess;
  return { ...answer, warning: [doubt, ...causes].join(" ") };
}

/** curl commands for the same requests, one per line. They name the token, but do not show it. */
export function asCurl(picture, setups) {
  const file = picture.copy ? picture.name.replace(/\.\w+$/, ".jpg") : picture.name;
  return setups
    .map((setup) => {
      const authorization = token() ? `-H "Authorization: Bearer $TOKEN" ` : "";
      const language = isNamed() ? `-H 'X-Classify-Language: ${NAMED}' ` : "";
      const headers = `-H 'Content-Type: application/octet-stream' -H 'X-Classify-TTA: ${setup.tta}'`;
      const address = quote(location.origin + endpoint(setup));
      return `curl ${authorization}${language}${headers} --data-binary @${quote(file)} ${address}`;
    })
    .join("\n");
}

/** Quote for a shell. */
function quote(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Put a text on the clipboard, even if the page was loaded over plain HTTP. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}
