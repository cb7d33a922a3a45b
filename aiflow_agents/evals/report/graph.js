// --- graph.js: the graph as it ran, with the bytes that its edges carried ----------------------------------------------------------------

// Where a line from the middle of `box` towards (x, y) leaves it.
function border(box, x, y, gap) {
  const dx = x - box.x, dy = y - box.y, w = box.w / 2 + gap, h = box.h / 2 + gap;
  const scale = Math.min(dx ? w / Math.abs(dx) : Infinity, dy ? h / Math.abs(dy) : Infinity);
  return [box.x + dx * scale, box.y + dy * scale];
}

// Home in the middle of its row, the others around it: most lines begin or end there.
function homeInTheMiddle(row) {
  const others = row.filter((node) => node !== RUN.home);
  return others.length === row.length ? row : [...others.slice(0, others.length >> 1), RUN.home, ...others.slice(others.length >> 1)];
}

// Boxes for the nodes: the cloud above, the edge below it, devices at the bottom, so that few lines cross a box.
function boxesOf(graph, width) {
  const nodes = sortedNodes([...graph.edges.flatMap(([src, dst]) => [src, dst]), ...graph.members.map(([node]) => node)]);
  const rows = TIERS.map((name) => homeInTheMiddle(nodes.filter((node) => tier(node) === name))).reverse().filter((row) => row.length);
  const boxes = new Map();
  let y = 16;
  for (const row of rows) {
    const members = row.map((node) => graph.members.filter(([at]) => at === node));
    const h = 30 + 16 * Math.max(1, ...members.map((at) => at.length)), w = Math.min(132, width * 0.3, (width - 16) / row.length - 8);
    row.forEach((node, i) => {
      const alone = { edge: 0.2, cloud: 0.8 }[tier(node)] ?? 0.5;
      boxes.set(node, { node, w, h, x: width * (row.length === 1 ? alone : (i + 0.5) / row.length), y: y + h / 2, members: members[i] });
    });
    y += h + 96;
  }
  return { boxes, height: y - 96 };
}

// So many edges can have their bytes beside them; with more, those of one node are shown at a time.
const crowd = (width) => (width < 600 ? 10 : 32);

const isLevel = (a, b) => Math.abs(a.y - b.y) < 1;

// The curve of one way: {start, control, end}. Both ways of a pair bend apart; neighbours on one row talk underneath it.
function curveOf(a, b) {
  const dx = b.x - a.x, dy = b.y - a.y, length = Math.hypot(dx, dy) || 1;
  if (isLevel(a, b)) {
    const right = dx > 0, aside = Math.sign(dx) * a.w * (right ? 0.15 : 0.35), y = a.y + a.h / 2;
    return { start: [a.x + aside, y], control: [(a.x + b.x) / 2, y + Math.abs(dx) * 0.2 + (right ? 48 : 18)], end: [b.x - aside, y + 4] };
  }
  const control = [(a.x + b.x) / 2 - (dy / length) * 22, (a.y + b.y) / 2 + (dx / length) * 22];
  return { start: border(a, ...control, 0), control, end: border(b, ...control, 4) };
}

// Where on its curve a label lies clear of those `placed` before it, nearer to where the messages come from if it can; it is added to them.
function labelPlace({ start, control, end }, width, placed) {
  const at = (t) => [0, 1].map((i) => (1 - t) ** 2 * start[i] + 2 * t * (1 - t) * control[i] + t * t * end[i]);
  const clear = ([x, y]) => placed.every((box) => Math.abs(box.x - x) > (box.width + width) / 2 || Math.abs(box.y - y) > 11);
  const [x, y] = [0.38, 0.46, 0.3, 0.54, 0.22, 0.62, 0.7].map(at).find(clear) ?? at(0.38);
  placed.push({ x, y, width });
  return { x, y: y + 4 };
}

function edgeOf(edge, boxes, most, labelled, placed) {
  const [src, dst, moves, nbytes] = edge, curve = curveOf(boxes.get(src), boxes.get(dst)), { start, control, end } = curve, text = quantity(nbytes, "B");
  return svg("g", { class: `edge ${tierClass(src)}${labelled ? " labelled" : ""}`, "data-ends": `${src} ${dst}` },
    svg("title", {}, `${src} → ${dst}: ${text} in ${Number(moves.toPrecision(3))} messages per question`),
    svg("path", { d: `M${start}Q${control} ${end}`, "stroke-width": 1 + 4 * Math.sqrt(nbytes / most), "marker-end": "url(#arrow)" }),
    svg("text", { ...labelPlace(curve, 6.4 * text.length + 4, placed), "text-anchor": "middle" }, text));
}

function graphDrawing(arm, width) {
  const graph = RUN.graphs[arm], { boxes, height } = boxesOf(graph, width);
  const most = Math.max(1, ...graph.edges.map((edge) => edge[3])), labelled = graph.edges.length <= crowd(width), placed = [];
  const curves = graph.edges.map(([src, dst]) => curveOf(boxes.get(src), boxes.get(dst)));
  const lowest = Math.max(height, ...curves.map(({ start, control, end }) => (start[1] + 2 * control[1] + end[1]) / 4 + 12)) + 8;
  const edges = graph.edges.map((edge) => edgeOf(edge, boxes, most, labelled, placed));
  const near = (node) => edges.forEach((edge) => edge.classList.toggle("near", node !== null && edge.dataset.ends.split(" ").includes(node)));
  const groups = [...boxes.values()].map((box) => svg("g", {
    class: `node ${tierClass(box.node)}`, tabindex: 0, role: "img",
      "aria-label": `${box.node}, ${tier(box.node) || "somewhere"}: ${box.members.map(([, who]) => who).join(", ") || "no member"}`,
    mouseenter: () => near(box.node), mouseleave: () => near(null), focus: () => near(box.node), blur: () => near(null),
  }, svg("rect", { x: box.x - box.w / 2, y: box.y - box.h / 2, width: box.w, height: box.h, rx: 8 }),
  svg("text", { class: "where", x: box.x, y: box.y - box.h / 2 + 18, "text-anchor": "middle" }, `${box.node}${box.node === RUN.home ? " ⌂" : ""}`),
  box.members.map(([, who, calls], i) => svg("text", { class: "who", x: box.x, y: box.y - box.h / 2 + 36 + 16 * i, "text-anchor": "middle" },
    calls > 1.05 ? `${who} ×${Number(calls.toPrecision(2))}` : who))));
  return svg("svg", { class: "drawing graph", viewBox: `0 0 ${width} ${lowest}`, xmlns: SVG, "aria-label": `Nodes and messages of ${RUN.arms[arm].name}` },
    svg("defs", {}, svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 6, refY: 4, markerWidth: 8, markerHeight: 8, orient: "auto",
      markerUnits: "userSpaceOnUse" },
      svg("path", { d: "M0 0 8 4 0 8Z", fill: "context-stroke", class: "tip" }))), edges, groups);
}

function drawGraph(root) {
  const options = armOptions((arm) => RUN.graphs[arm]?.edges.length);
  if (!options.length) return root.replaceChildren(el("p", { class: "note" }, "Nothing travelled in this run, or its trace was not kept."));
  const figure = el("figure", { class: "panel" }), note = el("p", { class: "note" }), rows = el("tbody");
  let arm = options[0][0];
  function draw() {
    const graph = RUN.graphs[arm], total = graph.edges.reduce((sum, edge) => sum + edge[3], 0);
    figure.replaceChildren(graphDrawing(arm, Math.max(300, Math.min(figure.clientWidth - 24, 860))));
    note.replaceChildren(`${quantity(total, "B")} a question over ${plural(graph.edges.length, "edge")}, on average over ${plural(graph.tasks, "question")} whose traces were kept. `,
      "Bytes are counted once from end to end; the tables count them on every link in between. ",
      graph.edges.length > crowd(figure.clientWidth) ? "Point at a node, or tab to it, to read its edges." : "");
    rows.replaceChildren(...[...graph.edges].sort((a, b) => b[3] - a[3]).map(([src, dst, moves, nbytes]) => el("tr", {},
      el("th", { scope: "row" }, `${src} → ${dst}`), el("td", {}, String(Number(moves.toPrecision(3)))), el("td", {}, quantity(nbytes, "B")))));
  }
  const chooser = select("Arm", options, arm, (value) => { arm = Number(value); draw(); });
  root.replaceChildren(el("div", { class: "controls" }, chooser.root, saveButton(figure, "graph")), figure, note,
    el("details", {}, el("summary", {}, "Every edge"), el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Edges" }, el("table",
      {}, el("thead", {}, el("tr", {}, ["from → to", "messages", "bytes"].map((head) =>
      el("th", { scope: "col" }, head)))), rows))));
  redrawn(figure, draw);
}
