"use strict";
// The report's reader. Model text is untrusted: it is only ever put into text nodes, never into markup.

const byId = (id) => document.getElementById(id);
const index = JSON.parse(byId("index").textContent);
const LISTED = 200; // problems added to the list at once
let found = []; // positions in `index` of the problems that match search and filters
let at = -1; // position in `found` of the problem shown
let listed = 0; // how many of `found` are in the list
let expanded = false;
let needle = ""; // the text searched for, in lower case
let lastSearch = 0; // number of the last search, so that a slower, older one does not overwrite it
let parsed = { slice: -1, items: [] }; // the one slice that is parsed

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function sliceOf(number) {
  if (parsed.slice !== number) parsed = { slice: number, items: JSON.parse(byId(`slice-${number}`).textContent) };
  return parsed.items;
}

function untrusted(text) {
  const element = make("div", "text", text);
  element.dir = "auto";
  return element;
}

// --- one problem ---

function collapsible(summary, text) {
  const details = make("details", "thoughts", make("summary", "", summary), untrusted(text));
  details.open = expanded || (needle !== "" && text.toLowerCase().includes(needle));
  return details;
}

function answerCell(answer) {
  const [thoughts, solution] = answer.tokens;
  const marks = answer.marks.map(([kind, words]) => make("span", `mark ${kind}`, words));
  const cell = make("td", "", make("div", "marks", ...marks));
  if (answer.thoughts) cell.append(collapsible(`thoughts, ${thoughts} tokens`, answer.thoughts));
  if (answer.solution) cell.append(untrusted(answer.solution), make("div", "tokens", `solution, ${solution} tokens`));
  if (answer.raw !== null) {
    const raw = collapsible("full text, as sampled", answer.raw);
    raw.open = raw.open || !answer.solution;
    cell.append(raw);
  }
  return cell;
}

function show(place) {
  at = place;
  const entry = index[found[place]];
  for (const id of ["query", "facts", "answers"]) byId(id).replaceChildren();
  byId("previous").disabled = place <= 0;
  byId("next").disabled = place >= found.length - 1;
  if (!entry) {
    byId("facts").append("No matches.");
    return;
  }
  const item = sliceOf(entry.slice)[entry.place];
  byId("query").append(untrusted(item.query));
  if (item.topic !== null) byId("facts").append(make("span", "mark plain", `topic: ${item.topic}`));
  if (item.reference !== null) byId("facts").append(make("span", "mark plain", `reference answer: ${item.reference}`));
  const heads = item.columns.map((name) => make("th", "", name));
  const rows = item.rows.map((row) => make("tr", "", make("th", "", row.name), ...row.answers.map(answerCell)));
  const table = make("table", "", make("thead", "", make("tr", "", make("th", ""), ...heads)), make("tbody", "", ...rows));
  byId("answers").append(table);
  byId("item").scrollTo(0, 0);
  mark(place);
}

// --- the list ---

function listItem(place) {
  const entry = index[found[place]];
  const level = (share) => (share === 1 ? 4 : Math.min(3, Math.ceil(share * 4)));
  const squares = entry.shares.map((share) => make("i", `share-${level(share)}`));
  const text = make("span", "", entry.query);
  text.dir = "auto";
  const button = make("button", "", make("span", "shares", ...squares), text);
  button.type = "button";
  button.dataset.place = place;
  return make("li", "", button);
}

function extend(upTo) {
  byId("more")?.remove();
  const places = [];
  for (; listed < Math.min(upTo, found.length); listed++) places.push(listItem(listed));
  byId("list").append(...places);
  if (listed < found.length) {
    const more = make("button", "", `show more (${(found.length - listed).toLocaleString("en")})`);
    more.type = "button";
    more.addEventListener("click", () => extend(listed + LISTED));
    const line = make("li", "", more);
    line.id = "more";
    byId("list").append(line);
  }
}

function mark(place) {
  if (place >= listed) extend(place + LISTED);
  const previous = byId("list").querySelector("[aria-current]");
  if (previous) previous.ariaCurrent = null;
  const button = byId("list").children[place].firstChild;
  button.ariaCurrent = "true";
  button.scrollIntoView({ block: "nearest" });
}

// --- search and filters ---

function contains(item) {
  const texts = [item.query, ...item.rows.flatMap((row) => row.answers.flatMap((a) => [a.thoughts, a.solution, a.raw]))];
  return texts.some((text) => text && text.toLowerCase().includes(needle));
}

function size(set) {
  const entries = index.filter((entry) => entry.set === set);
  const squares = entries[0]?.shares.length ? "; squares: share of correct samples, by stage" : "";
  return entries.length.toLocaleString("en") + squares;
}

async function find() {
  const search = ++lastSearch;
  const [set, topic, outcome] = ["set", "topic", "outcome"].map((id) => byId(id).value);
  needle = byId("search").value.trim().toLowerCase();
  const matches = (entry) =>
    entry.set === set && (!topic || entry.topic === topic) && (!outcome || entry.outcomes.some((each) => each.join("\n") === outcome));
  let numbers = [...index.keys()].filter((number) => matches(index[number]));
  if (needle) {
    const hits = [];
    let slice = -1;
    for (const number of numbers) {
      if (index[number].slice !== slice) {
        slice = index[number].slice;
        byId("found").textContent = "searching …";
        await new Promise((resume) => setTimeout(resume)); // let the page respond between slices
        if (search !== lastSearch) return;
      }
      if (contains(sliceOf(slice)[index[number].place])) hits.push(number);
    }
    numbers = hits;
  }
  found = numbers;
  listed = 0;
  byId("list").replaceChildren();
  byId("found").textContent = `${found.length.toLocaleString("en")} of ${size(set)}`;
  extend(LISTED);
  show(found.length ? 0 : -1);
}

function option(value, words) {
  const element = make("option", "", words);
  element.value = value;
  return element;
}

function fillFilters() {
  const entries = index.filter((entry) => entry.set === byId("set").value);
  const topics = [...new Set(entries.map((entry) => entry.topic))].filter((topic) => topic !== null).sort();
  byId("topic").replaceChildren(option("", "all topics"), ...topics.map((topic) => option(topic, topic)));
  const counts = new Map();
  for (const pair of entries.flatMap((entry) => entry.outcomes)) {
    const value = pair.join("\n");
    counts.set(value, (counts.get(value) ?? 0) + 1);
  }
  const groups = new Map();
  for (const value of [...counts.keys()].sort()) {
    const [stage, outcome] = value.split("\n");
    const line = option(value, `${stage ? `${stage}: ` : ""}${outcome} (${counts.get(value)})`);
    if (!groups.has(stage)) groups.set(stage, []);
    groups.get(stage).push(line);
  }
  byId("outcome").replaceChildren(option("", "all outcomes"), ...[...groups.values()].flat());
}

// --- keys, buttons, views ---

function step(by) {
  if (at + by >= 0 && at + by < found.length) show(at + by);
}

function toggleThoughts() {
  expanded = !expanded;
  byId("fold").textContent = expanded ? "Collapse all thoughts" : "Expand all thoughts";
  for (const details of document.querySelectorAll("details.thoughts")) details.open = expanded;
}

function view() {
  const reading = location.hash === "#reader";
  byId("overview").hidden = reading;
  byId("reader").hidden = !reading;
  for (const link of document.querySelectorAll("nav a")) link.ariaCurrent = (link.hash === "#reader") === reading ? "page" : null;
  scrollTo(0, 0);
  if (reading && at >= 0) mark(at);
}

const KEYS = {
  ArrowRight: () => step(1),
  ArrowLeft: () => step(-1),
  ArrowDown: () => step(1),
  ArrowUp: () => step(-1),
  t: toggleThoughts,
  "/": () => byId("search").focus(),
};

document.addEventListener("keydown", (event) => {
  if (byId("reader").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select");
  if (typing && event.key === "Escape") event.target.blur();
  const scrolling = event.key.startsWith("Arrow") && /Up|Down/.test(event.key) && byId("item").contains(event.target);
  if (typing || scrolling || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});

let timer;
byId("search").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(find, 200);
});
for (const id of ["topic", "outcome"]) byId(id).addEventListener("change", find);
byId("set").addEventListener("change", () => {
  fillFilters();
  find();
});
byId("list").addEventListener("click", (event) => {
  const button = event.target.closest("button[data-place]");
  if (button) show(Number(button.dataset.place));
});
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("fold").addEventListener("click", toggleThoughts);
addEventListener("hashchange", view);

byId("set").append(...[...new Set(index.map((entry) => entry.set))].map((name) => option(name, name)));
fillFilters();
view();
find();
