// --- elements.js: elements, and numbers in words -------------------------------------------------------------------------------------
// All elements are made here. Text becomes text nodes, so nothing that a model or a user wrote is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const el = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);

// A labelled drop-down; `options` are [value, text], `changed` gets the value as a string.
function select(label, options, chosen, changed) {
  const box = el("select", { change: () => changed(box.value) }, options.map(([value, text]) =>
    el("option", { value, selected: String(value) === String(chosen) }, text)));
  return { root: el("label", { class: "field" }, el("span", {}, label), box), box };
}

// Three significant digits and a metric prefix, as in the tables: (0.0453, "s") -> "45.3 ms".
function quantity(value, unit = "") {
  if (value === null || !Number.isFinite(value)) return "-";
  if (value === 0) return `0 ${unit}`.trim();
  const [lowest, prefixes] = ["s", "J", "W"].includes(unit) ? [-9, ["n", "µ", "m", "", "k", "M", "G"]] : [0, ["", "k", "M", "G", "T", "P", "E"]];
  let step = Math.min(Math.max(Math.floor(Math.log10(Math.abs(value)) / 3 + 1e-12), lowest / 3), lowest / 3 + prefixes.length - 1);
  if (Number((Math.abs(value) / 1000 ** step).toPrecision(3)) >= 1000) step += 1;
  return `${Number((value / 1000 ** step).toPrecision(3))} ${prefixes[step - lowest / 3]}${unit}`.trim();
}

const count = (n) => n.toLocaleString("en");
const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

// Round numbers from 0 up to `end`, about `wanted` of them.
function ticks(end, wanted) {
  const scale = 10 ** Math.floor(Math.log10(end / wanted));
  const step = [1, 2, 5, 10].map((m) => m * scale).find((s) => end / s <= wanted);
  return Array.from({ length: Math.floor(end / step + 1e-9) + 1 }, (_, i) => i * step);
}
