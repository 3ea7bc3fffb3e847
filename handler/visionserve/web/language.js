import { en } from "./en.js";
import { recall, remember } from "./memory.js";
import { zh } from "./zh.js";

const LANGUAGE = "visionserve-language";
const languages = {
  en: { tag: "en", name: "English", messages: en, other: "zh" },
  zh: { tag: "zh-CN", name: "中文", messages: zh, other: "en" },
};

let language =
  languages[recall("localStorage", LANGUAGE)] ??
  (navigator.language.startsWith("zh") ? languages.zh : languages.en);

/** A message in the person's language, `{name}` in it replaced; undefined where there is none. */
export function t(key, values = {}) {
  return language.messages[key]?.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Keep number formats: making one takes longer than using it a hundred times. */
const formats = new Map();

function format(options) {
  const key = language.tag + JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Intl.NumberFormat(language.tag, options));
  return formats.get(key);
}

/** A probability, or a threshold with no more digits than it needs. */
export function percent(probability, minimumFractionDigits = 1) {
  const digits = { minimumFractionDigits, maximumFractionDigits: 1 };
  return format({ style: "percent", ...digits }).format(probability);
}

/** A number of things. */
export function plain(value) {
  return format({}).format(value);
}

/** A quantity with its unit. */
export function number(value, unit, unitDisplay = "short") {
  return format({ style: "unit", unit, unitDisplay, maximumFractionDigits: 0 }).format(value);
}

/** A number of bytes for people, with two digits: 1,000 bytes are a kilobyte. */
export function fileSize(bytes) {
  const [unit, power] = bytes < 1e6 ? ["kilobyte", 1e3] : ["megabyte", 1e6];
  const digits = { maximumSignificantDigits: 2, roundingMode: "floor" };
  return format({ style: "unit", unit, ...digits }).format(bytes / power);
}

/** About how long something takes: seconds up to a minute and a half, then minutes. */
export function duration(seconds) {
  const rounded = Math.max(5, 5 * Math.round(seconds / 5));
  return rounded < 90
    ? number(rounded, "second", "long")
    : number(Math.round(seconds / 60), "minute", "long");
}

/** One or another of some names. */
export function listed(names) {
  return new Intl.ListFormat(language.tag, { type: "disjunction" }).format(names);
}

/** The language of the names that the page asks the server for; labels are mostly in English. */
export const NAMED = "zh";

/** Whether names are in the person's language. */
export function isNamed() {
  return language === languages[NAMED];
}

/** What people call a prediction's class, with all synonyms, in the person's language. */
export function wholeName({ label, name, english }) {
  return (isNamed() ? name : english) ?? label;
}

/** The first synonym: "tench" for "tench, Tinca tinca". */
export function shortName(prediction) {
  return wholeName(prediction).split(", ")[0];
}

/** Compare texts as a dictionary of the person's language orders them; for `sort`. */
export function compareTexts(one, other) {
  return one.localeCompare(other, language.tag);
}

/** Fill in the texts and labels inside an element, in the person's language. */
export function translate(root) {
  for (const element of root.querySelectorAll("[data-text]")) {
    element.textContent = t(element.dataset.text);
  }
  for (const element of root.querySelectorAll("[data-label]")) {
    element.ariaLabel = t(element.dataset.label);
  }
}

/** Translate the page now and whenever the button is pressed, then call back. */
export function watchLanguage(onChange) {
  const button = document.getElementById("language");
  const show = () => {
    const other = languages[language.other];
    document.documentElement.lang = language.tag;
    button.textContent = other.name;
    button.lang = other.tag;
    translate(document);
    onChange();
  };
  button.addEventListener("click", () => {
    remember("localStorage", LANGUAGE, language.other);
    language = languages[language.other];
    show();
  });
  show();
}
