import { percent, shortName, t } from "./language.js";

/** The report loads nothing and runs nothing; its pictures and its style lie in the file. */
const POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'";
const STYLE = `
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
  body { max-width: 860px; margin: 32px auto; padding: 0 16px; }
  article { display: flex; gap: 20px; padding: 16px 0; border-top: 1px solid #8884; break-inside: avoid; }
  img { width: 96px; height: 96px; object-fit: cover; border-radius: 8px; }
  div { flex: 1; min-width: 0; overflow-wrap: anywhere; }
  h1 { font-size: 22px; }
  h2 { margin: 0 0 4px; font-size: 14px; font-weight: 500; opacity: 0.75; }
  p { display: flex; justify-content: space-between; margin: 6px 0 2px; }
  i { display: block; height: 6px; min-width: 3px; border-radius: 3px; background: #0b6e69; print-color-adjust: exact; }
  small { opacity: 0.75; }`;

/**
 * A page of its own with the thumbnails and bars of results, which needs no network.
 *
 * Names and labels go in as texts of a document, so that none of them can be HTML.
 *
 * @param rows as `download.js` makes them.
 */
export async function toReport(rows) {
  const report = document.implementation.createHTMLDocument(t("report"));
  report.documentElement.lang = document.documentElement.lang;
  const add = (parent, tag, text = "", attributes = {}) => {
    const element = report.createElement(tag);
    element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    parent.append(element);
    return element;
  };
  const policy = report.createElement("meta");
  policy.httpEquiv = "Content-Security-Policy";
  policy.content = POLICY;
  const coding = report.createElement("meta");
  coding.setAttribute("charset", "utf-8");
  report.head.prepend(coding, policy);
  add(report.head, "meta", "", { name: "viewport", content: "width=device-width" });
  const main = add(report.body, "main");
  add(main, "h1", t("report"));
  for (const { path, picture, answer, error } of rows) {
    const article = add(main, "article");
    const src = picture.thumbnail && (await dataUri(picture.thumbnail));
    if (src) add(article, "img", "", { src, alt: "" });
    const text = add(article, "div");
    add(text, "h2", path);
    if (error) add(text, "p", error);
    for (const prediction of answer.predictions ?? []) {
      const line = add(text, "p");
      add(line, "span", shortName(prediction));
      add(line, "span", percent(prediction.probability));
      add(text, "i").style.width = `${100 * prediction.probability}%`;
    }
    const details = [answer.model, answer.version, t(`tta.${answer.tta}`) ?? answer.tta];
    add(text, "small", details.filter(Boolean).join(" · "));
  }
  // Within a document, the style would be subject to this page's policy.
  const html = report.documentElement.outerHTML.replace(
    "</head>",
    `<style>${STYLE}</style></head>`,
  );
  return `<!doctype html>\n${html}`;
}

function dataUri(blob) {
  return new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => done("");
    reader.readAsDataURL(blob);
  });
}
