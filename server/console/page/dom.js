// Elements from data. Everything that is shown goes in as a text node: what a client, a model or a supplier wrote stays text.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element; `given` are attributes, or properties for functions and booleans. Strings among the children become text. */
export function el(tag, given = {}, ...children) {
  return fill(document.createElement(tag), given, children);
}

/** An SVG element. */
export function svg(tag, given = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), given, children);
}

function fill(node, given, children) {
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** A number with its unit, or the words "not known". */
export function figure(text, unit = "") {
  if (text === null) return { text: "not known", unit: "", unknown: true };
  return { text, unit, unknown: false };
}

/** A row of tiles in a <dl>: each [label, figure, words under it]. */
export function tiles(list, rows) {
  list.replaceChildren(
    ...rows.map(([label, shown, under = ""]) =>
      el(
        "div",
        { class: "tile" },
        el("dt", {}, label),
        el("dd", { class: shown.unknown ? "figure unknown" : "figure" }, shown.text, shown.unit ? el("small", {}, shown.unit) : null),
        el("dd", { class: "under" }, under),
      ),
    ),
  );
}

/** A table: columns [heading, class]; rows of cells, which are text or elements. The first cell of a row heads it. */
export function table(caption, columns, rows, none) {
  if (!rows.length) return el("p", { class: "note" }, none);
  const cell = (value, n) => {
    const [, kind] = columns[n];
    return n === 0 ? el("th", { scope: "row", class: kind }, value) : el("td", { class: kind }, value);
  };
  return el(
    "table",
    {},
    el("caption", { class: "hidden" }, caption),
    el("thead", {}, el("tr", {}, ...columns.map(([name, kind]) => el("th", { scope: "col", class: kind }, name)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell)))),
  );
}
