// --- timeline.js: one question across the lanes of its nodes, to be played ----------------------------------------------------------------

const PLAYED_S = 9; // how long one takes to play, however short it was

// Lanes from top to bottom, each as high as calls at the same time need: {node, y, h, mid, rows: call -> row}.
function lanesOf(conversation) {
  const nodes = sortedNodes(conversation.spans.flatMap((span) => (span.move ? [span.node, span.to] : [span.node])));
  const lanes = new Map();
  let y = 30;
  for (const node of nodes) {
    const ends = [], rows = new Map();
    for (const call of conversation.spans.filter((span) => !span.move && span.node === node).sort((a, b) => a.start - b.start)) {
      let row = ends.findIndex((end) => end <= call.start + 1e-12);
      if (row < 0) row = ends.length;
      ends[row] = call.end;
      rows.set(call, row);
    }
    const step = ends.length > 4 ? Math.max(5, 100 / ends.length) : 24, h = Math.max(1, ends.length) * step + 16;
    lanes.set(node, { node, y, h, mid: y + h / 2, rows, step });
    y += h;
  }
  return { lanes, height: y + 8 };
}

function timelineDrawing(conversation, width) {
  const { lanes, height } = lanesOf(conversation), gutter = width < 560 ? 64 : 112, end = conversation.end;
  const x = (t) => gutter + ((width - gutter - 18) * t) / end;
  const bands = [...lanes.values()].map((lane, i) => svg("g", { class: `lane ${tierClass(lane.node)}` },
    svg("rect", { class: i % 2 ? "band odd" : "band", x: 0, y: lane.y, width, height: lane.h }), svg("rect", { class: "edge-mark", x: 0,
      y: lane.y + 3, width: 3, height: lane.h - 6, rx: 1.5 }),
    svg("text", { class: "where", x: 10, y: lane.mid + 1 }, lane.node), svg("text", { class: "axis", x: 10, y: lane.mid + 14 }, tier(lane.node))));
  const axis = ticks(end, width < 560 ? 3 : 8).map((t) => svg("g", {}, svg("path", { class: "grid", d: `M${x(t)} 26V${height - 8}` }),
    svg("text", { class: "axis", x: x(t), y: 18, "text-anchor": "middle" }, quantity(t, "s"))));
  const moves = conversation.spans.filter((span) => span.move && lanes.has(span.to)).map((span) => {
    const x0 = x(span.start), x1 = x(span.end), y0 = lanes.get(span.node).mid, y1 = lanes.get(span.to).mid, third = (x1 - x0) / 3;
    return { span, y0, y1, d: `M${x0} ${y0}C${x0 + third} ${y0} ${x1 - third} ${y1} ${x1} ${y1}` };
  });
  const layer = () => svg("g", {},
    moves.map(({ span, d }) => svg("path", { class: `move ${tierClass(span.node)}`, d, "stroke-width": Math.min(4, 0.8 + Math.log10(1 + span.nbytes) / 2) },
      svg("title", {}, `${span.who}: ${span.node} → ${span.to}, ${quantity(span.nbytes, "B")} in ${quantity(span.end - span.start, "s")}`))),
    conversation.spans.filter((span) => !span.move).map((span) => {
      const lane = lanes.get(span.node), w = Math.max(2, x(span.end) - x(span.start)), top = lane.y + 8 + lane.rows.get(span) * lane.step,
        h = Math.min(20, lane.step - 1);
      const room = w > 6.6 * span.who.length + 8 && h > 12;
      return svg("g", { class: `call ${tierClass(span.node)}` }, svg("title", {}, `${span.who} at ${span.node}: ${span.text.slice(0, 200)}`),
        svg("rect", { x: x(span.start), y: top, width: w, height: h, rx: Math.min(4, w / 2) }),
        room ? svg("text", { x: x(span.start) + w / 2, y: top + h / 2 + 4, "text-anchor": "middle" }, span.who) : null);
    }));
  const window = svg("rect", { x: 0, y: 0, width, height }), cursor = svg("path", { class: "cursor" }), dots = svg("g", { class: "dots" });
  const drawing = svg("svg", { class: "drawing timeline", viewBox: `0 0 ${width} ${height}`, xmlns: SVG, role: "img",
    "aria-label": "Calls on each node over time, and messages between them; the list below says the same" },
    svg("defs", {}, svg("clipPath", { id: "past" }, window)), bands, axis, svg("g", { class: "ghost" }, layer()), svg("g",
      { "clip-path": "url(#past)" }, layer()), dots, cursor);

  function at(now) {
    window.setAttribute("width", x(now) + 0.01);
    cursor.setAttribute("d", now >= end ? "" : `M${x(now)} 24V${height - 8}`);
    dots.replaceChildren(...moves.filter(({ span }) => now < end && span.start <= now && now < span.end).map(({ span, y0, y1 }) => {
      const u = (now - span.start) / (span.end - span.start), share = u * u * (3 - 2 * u); // the curve's height at this share of its length
      return svg("circle", { class: tierClass(span.node), cx: x(now), cy: y0 + (y1 - y0) * share, r: 4.5 });
    }));
  }
  return { drawing, at };
}

// What plays a conversation: drawing, controls and messages in step.
function player(root) {
  const figure = el("figure", { class: "panel" }), said = el("div", { class: "said", tabindex: 0, role: "region", "aria-label": "Messages" });
  const toggle = el("button", { type: "button", class: "play", click: () => (frame ? pause() : play()) });
  const scrub = el("input", { type: "range", min: 0, max: 1000, step: 1, value: 1000, "aria-label": "Time",
    input: () => { pause(); show((conversation.end * scrub.value) / 1000); } });
  const clock = el("output", { class: "clock" });
  let conversation = null, drawing = null, listed = null, now = 0, frame = 0;

  function show(time) {
    now = Math.min(time, conversation.end);
    drawing.at(now);
    scrub.value = Math.round((1000 * now) / conversation.end);
    scrub.setAttribute("aria-valuetext", quantity(now, "s"));
    clock.textContent = `${quantity(now, "s")} of ${quantity(conversation.end, "s")}`;
    let latest = null;
    listed.messages.forEach((message, i) => {
      const there = message.at <= now + 1e-9;
      listed.items[i].classList.toggle("later", !there);
      listed.items[i].classList.remove("latest");
      if (there) latest = listed.items[i];
    });
    if (latest && now < conversation.end) {
      latest.classList.add("latest");
      said.scrollTop = latest.offsetTop - said.clientHeight / 2;
    }
  }
  function play() {
    const from = now >= conversation.end ? 0 : now, began = performance.now(), rate = conversation.end / PLAYED_S;
    const step = (time) => {
      const next = from + (Math.max(0, time - began) / 1000) * rate;
      show(next);
      if (next >= conversation.end) pause();
      else frame = requestAnimationFrame(step);
    };
    frame = requestAnimationFrame(step);
    label();
  }
  function pause() {
    cancelAnimationFrame(frame);
    frame = 0;
    label();
  }
  function label() {
    toggle.textContent = frame ? "❚❚ Pause" : "▶ Play";
  }
  function redraw() {
    if (!conversation) return;
    drawing = timelineDrawing(conversation, Math.max(300, figure.clientWidth - 24));
    figure.replaceChildren(drawing.drawing);
    show(now);
  }
  label();
  root.append(figure, el("div", { class: "controls transport" }, toggle, scrub, clock, saveButton(figure, "timeline")), said);
  redrawn(figure, redraw);
  return {
    open(chosen) {
      pause();
      conversation = chosen;
      listed = messageList(conversation, (time) => { pause(); show(time); });
      said.replaceChildren(listed.list);
      said.scrollTop = 0;
      now = conversation.end;
      redraw();
    },
    play,
  };
}

let openTimeline = null; // (arm, task): shows that conversation; there once the section is drawn

function drawTimeline(root) {
  const kept = [...KEPT.values()];
  if (!kept.length) return root.replaceChildren(el("p", { class: "note" }, "This run kept no traces."));
  const tasks = [...new Set(kept.map((row) => row.task))];
  let arm = armOptions((one) => kept.some((row) => row.arm === one))[0][0], task = tasks.find((one) => KEPT.has(`${arm} ${one}`));
  const head = el("div", { class: "asked-head" }), body = el("div");
  const arms = select("Arm", armOptions((one) => kept.some((row) => row.arm === one)), arm, (value) => { arm = Number(value); open(); });
  const questions = select("Question", tasks.map((one) => [one, question(one).slice(0, 80)]), task, (value) => { task = Number(value); open(); });
  root.replaceChildren(el("div", { class: "controls" }, arms.root, questions.root), head, body);
  const played = player(body);
  function open() {
    const conversation = conversationOf(arm, task), share = score(arm, task);
    arms.box.value = arm;
    questions.box.value = task;
    body.hidden = !conversation;
    head.replaceChildren(el("span", { class: verdict(share) }, mark(share)), " answered ", el("b", {}, answer(arm, task) ?? "nothing"), ", expected ",
      el("b", {}, RUN.tasks.expected[task] ?? "unknown"), conversation ? "" : ". Of this pair no trace was kept.");
    if (conversation) played.open(conversation);
  }
  openTimeline = (newArm, newTask) => { arm = newArm; task = newTask; open(); };
  open();
}
