import { endpoint, facts, factsOf } from "./facts.js";
import { isNamed, NAMED, percent } from "./language.js";
import { token } from "./token.js";

/** An image's answers, one or a list, as the server would give them in the person's language. */
export function asJson(picture, setups) {
  const answers = setups
    .filter((setup) => picture.answer(setup))
    .map((setup) => {
      const { milliseconds, together, ...answer } = picture.answer(setup);
      return isNamed() ? answer : inEnglish(answer, setup);
    });
  return JSON.stringify(answers.length === 1 ? answers[0] : answers, null, 2);
}

/** An answer as the server gives it in English; the page asks for the other language's names. */
function inEnglish(answer, setup) {
  const predictions = answer.predictions.map(({ name, ...prediction }) => prediction);
  if (!("warning" in answer)) return { ...answer, predictions };
  const threshold = percent(factsOf(setup).defaults.threshold, 0);
  return { ...answer, predictions, warning: facts.warning.replace("{}", threshold) };
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
