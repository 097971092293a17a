// Creates elements. Text becomes text nodes, so text from a server or a file name is never parsed as HTML.

/**
 * @param {string} tag
 * @param {Object<string, any>} attributes `class`, `aria-label`, ...; `onclick` and other handlers take functions; true
 *   sets an attribute, false omits it.
 * @param {...(Node|string|null)} children null is omitted.
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Announces a text to screen readers. */
export function say(text) {
  byId("said").textContent = text;
}

/** 0.93 as "93.0 %"; shares that would round to 0 % or 100 % become "< 0.1 %" and "> 99.9 %". */
export function percent(share) {
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  if (share < 1 && share >= 0.9995) return "> 99.9 %";
  return `${(share * 100).toFixed(1)} %`;
}

export function fileSize(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  if (bytes < 1e6) return `${(bytes / 1000).toFixed(bytes < 1e4 ? 1 : 0)} kB`;
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

export const counted = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
