// --- figure.js: figures that can be taken along into a paper ---------------------------------------------------------------------------

const PAINT = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "opacity", "font-size", "font-weight", "font-family", "text-anchor",
  "paint-order"];

// The drawing as a file of its own: what the style sheet says is written into each element.
function standalone(drawing) {
  const copy = drawing.cloneNode(true), before = [drawing, ...drawing.querySelectorAll("*")], after = [copy, ...copy.querySelectorAll("*")];
  before.forEach((element, i) => {
    const style = getComputedStyle(element);
    after[i].setAttribute("style", style.display === "none" ? "display:none" : PAINT.map((name) => `${name}:${style.getPropertyValue(name)}`).join(";"));
  });
  const [, , width, height] = drawing.getAttribute("viewBox").split(" ");
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  return new XMLSerializer().serializeToString(copy);
}

function save(drawing, name) {
  const file = URL.createObjectURL(new Blob([standalone(drawing)], { type: "image/svg+xml" }));
  el("a", { href: file, download: `${name}.svg` }).click();
  setTimeout(() => URL.revokeObjectURL(file), 10_000);
}

// A button that saves the drawing which is then to be seen.
function saveButton(figure, name) {
  return el("button", { type: "button", class: "quiet", click: () => {
    const seen = [...figure.querySelectorAll("svg.drawing")].find((drawing) => drawing.getBoundingClientRect().width > 0);
    if (seen) save(seen, name);
  } }, "Save as SVG");
}
