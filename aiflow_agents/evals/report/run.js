// --- run.js: the run, as embedded in the page ----------------------------------------------------------------------------------------
// RUN.arms: {name, kind, ceiling}. An arm, a task and a tag are numbers from here on: their places in RUN.arms, RUN.tasks.id and RUN.tags.
// RUN.tasks: columns id, question (null: the id says it), expected, tags, said (the different answers to a task).
// RUN.answered[arm], RUN.scored[arm]: strings with one character per task, see samples.py.
// RUN.graphs[arm], RUN.conversations: see conversations.py. RUN.tiers: node -> tier.

const RUN = JSON.parse(document.getElementById("run").textContent);
const TASKS = RUN.tasks.id.length;
const DIGIT = new Map([..."0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"].map((digit, i) => [digit, i]));
const KINDS = { topology: "topologies", rival: "rivals", placebo: "placebos", member: "members" };

const failed = (arm, task) => RUN.scored[arm][task] === "!";
// From 0 to 1; null where this arm was not asked.
const score = (arm, task) => (failed(arm, task) ? 0 : DIGIT.has(RUN.scored[arm][task]) ? DIGIT.get(RUN.scored[arm][task]) / 60 : null);
const question = (task) => RUN.tasks.question[task] ?? RUN.tasks.id[task];

function answer(arm, task) {
  const place = RUN.answered[arm][task];
  return place === "~" ? "(one of many more answers)" : DIGIT.has(place) ? RUN.tasks.said[task][DIGIT.get(place)] : null;
}

// > 0 where this arm mended what the best member had got wrong, < 0 where it broke what that one had right.
function change(arm, task) {
  const own = score(arm, task), other = RUN.best_member === null ? null : score(RUN.best_member, task);
  return own === null || other === null ? 0 : own - other;
}

const mark = (share) => (share === null ? "·" : share >= 1 ? "✓" : share <= 0 ? "✗" : `${Math.round(100 * share)} %`);
const verdict = (share) => (share === null ? "none" : share >= 1 ? "right" : share <= 0 ? "wrong" : "partly");

// Arms as options of a drop-down, best topology first.
function armOptions(wanted) {
  const order = Object.keys(KINDS), rank = (arm) => (arm === RUN.best_topology ? -1 : order.indexOf(RUN.arms[arm].kind));
  return RUN.arms.map((_, arm) => arm).filter(wanted).sort((a, b) => rank(a) - rank(b)).map((arm) => [arm, RUN.arms[arm].name]);
}

// Conversations that were kept, by "arm task". Spans are unpacked when one is asked for.
const KEPT = new Map(RUN.conversations.rows.map((row) => [`${row.arm} ${row.task}`, row]));

function conversationOf(arm, task) {
  const row = KEPT.get(`${arm} ${task}`);
  if (!row) return null;
  const name = (place) => (place < 0 ? "" : RUN.conversations.names[place]);
  const spans = row.spans.map(([move, who, node, start, end, message, to, heard, nbytes, confidence]) => ({
    move: move === 1, who: name(who), node: name(node), start, end, message, to: name(to), heard, nbytes, confidence, text: row.texts[message] ?? "",
  }));
  return { arm, task, spans, end: Math.max(...spans.map((span) => span.end), 1e-9) };
}

const TIERS = ["device", "edge", "cloud", ""];
const tier = (node) => RUN.tiers[node] || "";
const tierClass = (node) => `tier-${tier(node) || "none"}`;

// Nodes from the devices up to the cloud, where questions arise first.
function sortedNodes(nodes) {
  const rank = (node) => TIERS.indexOf(tier(node)) * 2 + (node === RUN.home ? 0 : 1);
  return [...new Set(nodes)].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}
