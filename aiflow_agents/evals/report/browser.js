// --- browser.js: every question, what each arm answered, and what was said ----------------------------------------------------------------

const ROW = 44; // pixels of a row; only rows in sight exist
const OUTCOMES = [["", "all"], ["right", "right"], ["wrong", "wrong"], ["fixed", "fixed (the best member was wrong)"], ["broken",
  "broken (the best member was right)"], ["failed", "failed"],
  ["kept", "with a kept conversation"]];

function hasOutcome(arm, task, outcome) {
  const share = score(arm, task);
  return outcome === "" || (outcome === "right" && share >= 1 && share !== null) || (outcome === "wrong" && share !== null && share < 1) ||
    (outcome === "fixed" && change(arm, task) > 0) || (outcome === "broken" && change(arm, task) < 0) || (outcome === "failed" && failed(arm, task)) ||
    (outcome === "kept" && KEPT.has(`${arm} ${task}`));
}

let searchable = null; // lower-case text of every task; made at the first search
function matches(task, words) {
  searchable ??= RUN.tasks.id.map((id, i) => [id, RUN.tasks.question[i] ?? "", RUN.tasks.expected[i] ?? "", ...RUN.tasks.said[i]].join("\n").toLowerCase());
  return words.every((word) => searchable[task].includes(word));
}

// One question in full: answers with the arms that gave them, and the conversations that were kept.
function taskDetail(task, arm) {
  const groups = new Map();
  RUN.arms.forEach((one, i) => {
    const share = score(i, task), text = failed(i, task) ? "(failed)" : answer(i, task) ?? "(no answer)", key = `${share} ${text}`;
    if (share === null || one.ceiling) return;
    if (!groups.has(key)) groups.set(key, { share, text, arms: [] });
    groups.get(key).arms.push(i);
  });
  const chip = (one) => el("span", { class: `chip ${RUN.arms[one].kind}${one === arm ? " chosen" : ""}` }, RUN.arms[one].name);
  const talk = el("div"), kept = armOptions((one) => KEPT.has(`${one} ${task}`));
  function talkOf(one) {
    talk.replaceChildren(messageList(conversationOf(one, task), null).list, openTimeline ?
      el("button", { type: "button", click: () => { openTimeline(one, task); document.getElementById("timeline").scrollIntoView(); } },
        "Show on the timeline") : "");
  }
  const first = kept.find(([one]) => one === arm) ?? kept[0];
  if (first) talkOf(first[0]);
  return [
    el("p", { class: "note" }, [RUN.tasks.id[task], ...RUN.tasks.tags[task].map((tag) => RUN.tags[tag])].join(" · ")),
    el("p", { class: "question" }, question(task)),
    el("p", {}, "Expected ", el("b", {}, RUN.tasks.expected[task] ?? "unknown")),
    el("ul", { class: "answers" }, [...groups.values()].sort((a, b) => b.share - a.share || b.arms.length - a.arms.length).map((group) => el("li", {},
      el("span", { class: verdict(group.share) }, mark(group.share)), el("div", {}, el("div", { class: "said-text" }, group.text), el("div",
        { class: "chips" }, group.arms.map(chip)))))),
    first ? select("Conversation of", kept, first[0], (value) => talkOf(Number(value))).root : el("p", { class: "note" },
      "Conversations were kept of the first questions only."),
    talk,
  ];
}

let browse = () => {}; // ({arm, outcome, tag}): shows those questions; there once the section is drawn

function drawBrowser(root) {
  const wanted = { arm: RUN.best_topology ?? RUN.best_member ?? 0, outcome: "", tag: "", words: [] };
  let found = [], chosen = -1; // tasks that are wanted, and the place of the open one among them
  const space = el("div", { class: "rows" }), total = el("p", { class: "note", role: "status" }), detail = el("div", { class: "detail", tabindex: 0,
    role: "region", "aria-label": "The chosen question" });
  const list = el("div", { class: "list", tabindex: 0, role: "listbox", "aria-label": "Questions", scroll: () => rows(), keydown: (event) => {
    const page = Math.floor(list.clientHeight / ROW), step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity,
      End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    open(Math.min(Math.max(chosen + step, 0), found.length - 1));
  } }, space);

  function rows() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4), last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
    space.style.height = `${found.length * ROW}px`;
    space.replaceChildren(...found.slice(first, last).map((task, i) => {
      const place = first + i, share = score(wanted.arm, task);
      return el("div", { class: "row", role: "option", id: `row-${place}`, "aria-selected": String(place === chosen), "aria-posinset": place + 1,
        "aria-setsize": found.length, style: `top:${place * ROW}px`, click: () => open(place) },
        el("span", { class: verdict(share) }, mark(share)), el("span", { class: "line" }, question(task)), el("span", { class: "tag" },
          RUN.tags[RUN.tasks.tags[task][0]] ?? ""));
    }));
  }
  function open(place) {
    if (place < 0 || place >= found.length) return;
    chosen = place;
    if (place * ROW < list.scrollTop) list.scrollTop = place * ROW;
    if ((place + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (place + 1) * ROW - list.clientHeight;
    rows();
    list.setAttribute("aria-activedescendant", `row-${place}`);
    detail.replaceChildren(...taskDetail(found[place], wanted.arm));
    detail.scrollTop = 0;
  }
  function filter() {
    found = [];
    for (let task = 0; task < TASKS; task += 1) {
      if (hasOutcome(wanted.arm, task, wanted.outcome) && (wanted.tag === "" || RUN.tasks.tags[task].includes(Number(wanted.tag))) && matches(task,
        wanted.words)) found.push(task);
    }
    total.textContent = found.length === TASKS ? plural(TASKS, "question") : `${count(found.length)} of ${plural(TASKS, "question")}`;
    chosen = -1;
    list.scrollTop = 0;
    list.removeAttribute("aria-activedescendant");
    rows();
    if (found.length) open(0);
    else detail.replaceChildren(el("p", { class: "note" }, "No question is like that."));
  }
  const search = el("input", { type: "search", placeholder: "question, answer, id",
    input: () => { wanted.words = search.value.toLowerCase().split(/\s+/).filter(Boolean); filter(); } });
  const fields = {
    arm: select("Arm", armOptions(() => true), wanted.arm, (value) => { wanted.arm = Number(value); filter(); }),
    outcome: select("Outcome", OUTCOMES, "", (value) => { wanted.outcome = value; filter(); }),
    tag: select("Skill", [["", "all"], ...RUN.tags.map((name, tag) => [tag, name])], "", (value) => { wanted.tag = value; filter(); }),
  };
  browse = (asked) => {
    Object.assign(wanted, asked, { words: [] });
    search.value = "";
    for (const [name, field] of Object.entries(fields)) field.box.value = wanted[name];
    filter();
    document.getElementById("tasks").scrollIntoView();
    list.focus({ preventScroll: true });
  };
  root.replaceChildren(el("div", { class: "controls" }, el("label", { class: "field wide" }, el("span", {}, "Search"), search),
    Object.values(fields).map((field) => field.root)), total,
    el("div", { class: "browser" }, list, detail));
  filter();
  redrawn(list, rows);
}
