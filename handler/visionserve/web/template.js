/** A copy of a template's element. */
export function clone(template) {
  return document.getElementById(template).content.firstElementChild.cloneNode(true);
}

/** Set an element's text, and hide the element if the text is empty. */
export function say(element, text) {
  element.hidden = !text;
  if (element.textContent !== text) element.textContent = text;
}
