// --- changes.js: who mended and who broke what the best member had answered -------------------------------------------------------------

// How many tasks an arm fixed and broke: {fixed, broken, tags: {tag: {fixed, broken, tasks}}}.
function changesOf(arm) {
  const found = { fixed: 0, broken: 0, tags: RUN.tags.map(() => ({ fixed: 0, broken: 0, tasks: 0 })) };
  for (let task = 0; task < TASKS; task += 1) {
    const sign = change(arm, task), tags = RUN.tasks.tags[task];
    for (const tag of tags) found.tags[tag].tasks += 1;
    if (sign === 0) continue;
    const key = sign > 0 ? "fixed" : "broken";
    found[key] += 1;
    for (const tag of tags) found.tags[tag][key] += 1;
  }
  return found;
}

// One line of bars that grow from the middle; each bar leads to its questions.
function changeRow(label, found, most, show) {
  const bar = (key) => el("button", {
    type: "button", class: `bar ${key}`, disabled: found[key] === 0, click: () => show(key),
    "aria-label": `${plural(found[key], "question")} ${key}: show them`, style: `--share:${found[key] / most}`,
  }, el("i"), el("b", {}, count(found[key])));
  return el("div", { class: "change-row" }, label, bar("broken"), bar("fixed"));
}

function drawChanges(root) {
  const arms = armOptions((arm) => arm !== RUN.best_member && !RUN.arms[arm].ceiling).map(([arm]) => arm);
  if (RUN.best_member === null || !arms.length || !TASKS) return root.replaceChildren(el("p", { class: "note" }, "There is nothing to compare."));
  const all = new Map(arms.map((arm) => [arm, changesOf(arm)]));
  const most = Math.max(1, ...[...all.values()].flatMap((found) => [found.fixed, found.broken]));
  const left = el("div", { class: "changes" }), right = el("div", { class: "changes" });
  const head = (text) => el("div", { class: "change-row head" }, el("span", {}, text), el("span", {}, "broken"), el("span", {}, "fixed"));

  function pick(chosen) {
    left.replaceChildren(head("arm"), ...arms.flatMap((arm, i) => {
      const kind = RUN.arms[arm].kind, row = changeRow(
        el("button", { type: "button", class: `name ${kind}`, "aria-pressed": String(arm === chosen), title: RUN.arms[arm].name,
          click: () => { pick(arm); left.querySelector("[aria-pressed=true]").focus(); } },
          RUN.arms[arm].name), all.get(arm), most, (outcome) => browse({ arm, outcome, tag: "" }));
      const first = i === 0 || RUN.arms[arms[i - 1]].kind !== kind;
      return first ? [el("div", { class: "change-kind" }, KINDS[kind] ?? kind), row] : [row];
    }));
    const tags = RUN.tags.map((name, tag) => ({ name, tag, ...all.get(chosen).tags[tag] })).filter((tag) => tag.tasks)
      .sort((a, b) => b.fixed - b.broken - (a.fixed - a.broken));
    const largest = Math.max(1, ...tags.flatMap((tag) => [tag.fixed, tag.broken]));
    right.replaceChildren(head(`${RUN.arms[chosen].name}, by skill`), ...tags.map((tag) => changeRow(
      el("span", { class: "name" }, tag.name, el("small", {}, ` of ${count(tag.tasks)}`)), tag, largest,
      (outcome) => browse({ arm: chosen, outcome, tag: tag.tag }))));
  }
  pick(arms[0]);
  root.replaceChildren(el("div", { class: "two" }, left, right));
}
