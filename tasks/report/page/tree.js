"use strict";
// Shows a problem's search tree. Model text is untrusted: it is only ever put into text nodes, never into markup.

const byId = (id) => document.getElementById(id);
const index = JSON.parse(byId("index").textContent); // {search, problem, query, tree} of each tree
const SVG = "http://www.w3.org/2000/svg";
const ACROSS = 72; // pixels from a step to the next
const DOWN = 16; // pixels from a leaf to the next
let tree = null; // the tree that is shown, see `read`
let selected = 0;
const drawn = new Map(); // what is drawn of a node, by its number

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function shape(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// --- the tree ---

function read(number) {
  const held = JSON.parse(byId(`tree-${number}`).textContent);
  const nodes = held.nodes.map(([parent, text, visits, solution, value, answer, correct], at) => {
    return { at, parent, text, visits, value, solution, answer, correct, children: [], right: 0, wrong: 0 };
  });
  for (const node of nodes) if (node.parent !== null) nodes[node.parent].children.push(node);
  for (const node of nodes.toReversed()) {
    if (node.solution && node.correct !== null) node[node.correct ? "right" : "wrong"] += 1;
    if (node.parent === null) continue;
    nodes[node.parent].right += node.right;
    nodes[node.parent].wrong += node.wrong;
  }
  for (const node of nodes) {
    node.depth = node.parent === null ? 0 : nodes[node.parent].depth + 1;
    node.wrongTurn = node.parent !== null && nodes[node.parent].right > 0 && node.right === 0 && node.wrong > 0;
  }
  for (let at = held.chosen; at !== null; at = nodes[at].parent) nodes[at].best = true;
  return { ...held, nodes };
}

function pathTo(node) {
  const path = [];
  for (let at = node; at; at = at.parent === null ? null : tree.nodes[at.parent]) path.unshift(at);
  return path;
}

function shownChildren(node) {
  return node.folded ? [] : node.children;
}

/** Places of all nodes that are shown: leaves below each other, a step halfway between its first and last child. */
function layOut() {
  let leaves = 0;
  const shown = [];
  const stack = [{ node: tree.nodes[0], next: 0 }];
  while (stack.length) {
    const top = stack.at(-1);
    const children = shownChildren(top.node);
    if (top.next < children.length) {
      stack.push({ node: children[top.next++], next: 0 });
      continue;
    }
    top.node.y = children.length ? (children[0].y + children.at(-1).y) / 2 : DOWN * ++leaves;
    top.node.x = 16 + ACROSS * top.node.depth;
    shown.push(top.node);
    stack.pop();
  }
  return { shown, width: 16 + ACROSS * (1 + Math.max(...shown.map((node) => node.depth))), height: DOWN * (leaves + 1) };
}

function colour(value) {
  if (value === null) return "transparent";
  const share = tree.highest > tree.lowest ? (value - tree.lowest) / (tree.highest - tree.lowest) : 1;
  return `color-mix(in srgb, rgb(var(--high)) ${Math.round(100 * share)}%, rgb(var(--low)))`;
}

function nodeShape(node) {
  const mark = !node.solution || node.correct === null ? "" : node.correct ? " right" : " wrong";
  const attributes = { class: `node${mark}`, "data-at": node.at, transform: `translate(${node.x} ${node.y})` };
  const own = node.solution
    ? shape("rect", { x: -5, y: -5, width: 10, height: 10, rx: 2 })
    : shape("circle", { r: 3 + Math.min(4, Math.sqrt(node.visits) / 2) });
  if (!mark) own.style.fill = colour(node.value);
  const words = node.solution ? (node.answer ?? "no answer") : node.folded ? `+ ${node.visits}` : "";
  const group = shape("g", attributes, shape("title", {}, facts(node)), own);
  if (words) group.append(shape("text", { x: 9, y: 4 }, words.length > 24 ? `${words.slice(0, 23)}…` : words));
  return group;
}

function draw() {
  const { shown, width, height } = layOut();
  const svg = shape("svg", { width: width + 120, height, role: "img", "aria-label": `${tree.nodes.length} nodes` });
  const lines = shape("g", {});
  const marks = shape("g", {});
  drawn.clear();
  for (const node of shown) {
    if (node.parent !== null) {
      const { x, y } = tree.nodes[node.parent];
      const bend = (x + node.x) / 2;
      const kind = node.best ? "best" : node.wrongTurn ? "wrong-turn" : "";
      lines.append(shape("path", { class: kind, d: `M${x} ${y}C${bend} ${y} ${bend} ${node.y} ${node.x} ${node.y}` }));
    }
    drawn.set(node.at, nodeShape(node));
    marks.append(drawn.get(node.at));
  }
  svg.append(lines, marks);
  byId("drawing").replaceChildren(svg);
}

// --- the selected node ---

function facts(node) {
  const reward = node.value === null ? "not scored" : `reward ${node.value.toFixed(3)}`;
  if (node.solution) {
    const graded = node.correct === null ? "" : node.correct ? ", right" : ", wrong";
    return `answer ${node.answer ?? "none"}${graded}, ${reward}${node.at === tree.chosen ? ", chosen" : ""}`;
  }
  return `${node.visits} attempts, ${node.value === null ? reward : `mean ${reward}`}${node.wrongTurn ? ", wrong turn" : ""}`;
}

function select(at) {
  drawn.get(selected)?.classList.remove("selected");
  selected = at;
  const node = tree.nodes[at];
  drawn.get(at)?.classList.add("selected");
  const items = pathTo(node).slice(1).map((each) => {
    const text = make("div", "text", each.text.trim() || "(end)");
    text.dir = "auto";
    return make("li", each.best ? "best" : each.wrongTurn ? "wrong-turn" : "", text, make("small", "", facts(each)));
  });
  byId("path").replaceChildren(...items);
  byId("fold").disabled = !node.children.length;
  byId("fold").textContent = node.folded ? "Expand" : "Collapse";
  drawn.get(at)?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function fold() {
  const node = tree.nodes[selected];
  if (!node.children.length) return;
  node.folded = !node.folded;
  draw();
  select(selected);
}

// --- which tree ---

function show(entry) {
  tree = read(entry.tree);
  const values = tree.nodes.map((node) => node.value).filter((value) => value !== null);
  tree.lowest = Math.min(...values);
  tree.highest = Math.max(...values);
  const [root] = tree.nodes;
  byId("query").textContent = tree.query;
  byId("facts").textContent = tree.reference === null ? "" : `Reference answer: ${tree.reference}`;
  const graded = root.right + root.wrong ? `, ${root.right} of them right` : "";
  const steps = tree.nodes.filter((node) => !node.solution).length - 1;
  byId("found").textContent = `${steps} steps, ${tree.nodes.length - steps - 1} solutions${graded}, ${tree.tokens} tokens`;
  draw();
  selected = 0;
  select(tree.chosen ?? 0);
}

function option(value, text) {
  const element = make("option", "", text);
  element.value = value;
  return element;
}

function problemsOf(search) {
  return index.filter((entry) => entry.search === search);
}

function chooseSearch() {
  const before = byId("problem").value;
  const entries = problemsOf(byId("search").value);
  byId("problem").replaceChildren(...entries.map((entry) => option(entry.problem, entry.query)));
  if (entries.some((entry) => entry.problem === before)) byId("problem").value = before;
  chooseProblem();
}

function chooseProblem() {
  show(problemsOf(byId("search").value).find((entry) => entry.problem === byId("problem").value));
}

function neighbour(key) {
  const node = tree.nodes[selected];
  const siblings = node.parent === null ? [node] : tree.nodes[node.parent].children;
  const place = siblings.indexOf(node);
  if (key === "ArrowLeft") return node.parent === null ? node : tree.nodes[node.parent];
  if (key === "ArrowRight") return shownChildren(node).find((child) => child.best) ?? shownChildren(node)[0] ?? node;
  return siblings[place + (key === "ArrowDown" ? 1 : -1)] ?? node;
}

byId("search").addEventListener("change", chooseSearch);
byId("problem").addEventListener("change", chooseProblem);
byId("fold").addEventListener("click", fold);
byId("drawing").addEventListener("click", (event) => {
  const group = event.target.closest(".node");
  if (group) select(Number(group.dataset.at));
});
byId("drawing").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key.startsWith("Arrow")) select(neighbour(event.key).at);
  else if (event.key === " ") fold();
  else return;
  event.preventDefault();
});

byId("search").append(...[...new Set(index.map((entry) => entry.search))].map((name) => option(name, name)));
chooseSearch();
