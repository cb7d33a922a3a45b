// --- conversation.js: what was said, one message after the other -------------------------------------------------------------------------

// Messages in the order in which they were there: {id, who, node, at, text, heard, confidence, ways: [{to, nbytes, start, end}]}.
function messagesOf(conversation) {
  const found = new Map();
  for (const span of conversation.spans) {
    const known = found.get(span.message) ?? { id: span.message, who: span.who, node: span.node, at: Infinity, text: span.text, heard: [],
      confidence: null, ways: [] };
    if (span.move) {
      known.ways.push(span);
      known.at = Math.min(known.at, span.start);
    } else Object.assign(known, { at: span.end, node: span.node, heard: span.heard, confidence: span.confidence });
    found.set(span.message, known);
  }
  return [...found.values()].sort((a, b) => a.at - b.at);
}

// Where a message went. All ways of one size are said at once.
function waysText(ways) {
  if (!ways.length) return "stayed where it was";
  const sizes = [...new Set(ways.map((way) => way.nbytes))];
  return sizes.map((size) => `${ways.filter((way) => way.nbytes === size).map((way) => way.to).join(", ")} (${quantity(size, "B")}${ways.length > 1 ? " each" : ""})`)
    .map((text) => `→ ${text}`).join("  ");
}

// A list of messages; with `pick`, each can be chosen and gives its moment.
function messageList(conversation, pick) {
  const messages = messagesOf(conversation), author = new Map(messages.map((message) => [message.id, message.who]));
  const items = messages.map((message) => {
    const heard = [...new Set(message.heard.map((id) => author.get(id) ?? "someone"))];
    const head = [el("b", { class: tierClass(message.node) }, message.who), el("span", {}, ` at ${message.node} · ${quantity(message.at, "s")}`),
      message.confidence === null ? null : el("span", {}, ` · ${Math.round(100 * message.confidence)} % sure`)];
    return el("li", {},
      pick ? el("button", { type: "button", class: "head", "aria-label": `${message.who}, at ${quantity(message.at, "s")}: go there`,
        click: () => pick(message.at) }, head)
        : el("div", { class: "head" }, head),
      el("div", { class: "text" }, message.text || "(no text)"),
      el("div", { class: "note" }, heard.length ? `having heard ${heard.join(", ")} · ` : "", waysText(message.ways)));
  });
  return { list: el("ol", { class: "messages" }, items), messages, items };
}
