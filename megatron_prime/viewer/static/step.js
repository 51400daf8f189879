"use strict";
// The page of a logged step. Groups are drawn when they come near the window and removed when they leave it, and their
// texts and numbers are loaded part by part, so that a step of millions of tokens opens at once.

const folder = document.body.dataset.step;
const parts = new Map(); // part -> promise of its decoded rows
const texts = new Map(); // part -> promise of its texts
let index = null;
let colour = "process_rewards";
let articles = []; // one per group, in the order of the file
let needle = "";
let cursor = null; // { card, token }

const element = (id) => document.getElementById(id);
const partOf = (row) => index.parts.findIndex(([first, end]) => row >= first && row < end);
const isRight = (reward) => reward >= 0.5;

async function start() {
  index = await load(`${folder}index.js`, "index");
  const available = Object.keys(COLOURINGS).filter((name) => name in index.scales);
  colour = available.includes(setting("colour")) ? setting("colour") : available[0] || "process_rewards";
  document.querySelectorAll("#colours input").forEach((input, number) => {
    input.disabled = !available.includes(input.value);
    input.parentElement.title = input.disabled ? "not logged in this step" : `key ${number + 1}`;
    input.addEventListener("change", () => setColour(input.value));
    keys.set(String(number + 1), () => !input.disabled && setColour(input.value));
  });
  for (const source of [...new Set(index.groups.map((group) => group.source))].sort()) {
    element("source").append(h("option", { value: `=${source}` }, source || "(unnamed)"));
  }
  element("summary").textContent = summary();
  articles = index.groups.map(buildArticle);
  element("groups").append(...articles.map((article) => article.node));
  const observer = new IntersectionObserver(watch, { rootMargin: "600px 0px" });
  articles.forEach((article) => observer.observe(article.node));
  for (const id of ["outcome", "source", "verdict", "truncated", "order"]) element(id).addEventListener("change", applyFilters);
  element("search").addEventListener("input", debounced(search, 200));
  element("steps").addEventListener("change", () => { location.href = element("steps").value; });
  setColour(colour);
  applyFilters();
  window.addEventListener("hashchange", jump);
  jump();
}

function summary() {
  const rewards = index.rows.reward.filter((reward) => reward !== null);
  const right = rewards.filter(isRight).length;
  const tokens = index.rows.tokens.reduce((sum, count) => sum + count, 0);
  const share = rewards.length ? `${Math.round((100 * right) / rewards.length)} % right` : "none verified";
  const kept = index.groups.filter((group) => group.filter === "kept").length;
  return `${index.groups.length} groups with ${index.rows.tokens.length} responses and ${tokens.toLocaleString("en-US")} tokens: ${share}; ` +
    `${kept} groups were kept for training. Sampled by policy version ${index.policy_version}.`;
}

function jump() {
  const match = /^#g(\d+)$/.exec(location.hash);
  if (match && articles[Number(match[1])]) selectGroup(articles[Number(match[1])]);
}

// Groups

function buildArticle(group, number) {
  const rows = Array.from({ length: group.size }, (_, sample) => group.first + sample);
  const rewards = rows.map((row) => index.rows.reward[row]).filter((reward) => reward !== null);
  const verdict = group.filter === "kept" ? "kept for training" : (group.filter || "not filtered").replace("dropped_", "rejected: ").replaceAll("_", " ");
  const node = h("article", { class: "group card", id: `g${number}`, tabindex: "-1" },
    h("header", {}, h("h2", {}, `Group ${number}`),
      h("span", { class: "muted" }, "problem ", h("bdi", {}, `${group.source} ${group.problem}`)),
      h("span", { class: `badge ${group.filter === "kept" ? "" : "rejected"}` }, verdict),
      h("span", { class: "muted" }, `${rewards.filter(isRight).length} of ${group.size} right`)),
    h("div", { class: "question" }, h("div", { class: "prompt", dir: "auto" }, group.prompt), h("div", { class: "answer" }, "answer ", h("b", { dir: "auto" }, group.truth))));
  const body = h("div", { class: "responses" });
  node.append(body);
  // Until the group is drawn, an estimate of its height keeps the scroll bar right.
  body.style.minHeight = `${Math.min(460, 90 + Math.max(...rows.map((row) => index.rows.tokens[row])) * 2)}px`;
  return { group, number, rows, node, body, isNear: false, isDrawn: false, cards: [] };
}

function watch(entries) {
  for (const entry of entries) {
    const article = articles[Number(entry.target.id.slice(1))];
    article.isNear = entry.isIntersecting;
    if (article.isNear) draw(article);
    else if (article.isDrawn) {
      article.body.style.minHeight = `${article.body.offsetHeight}px`;
      article.body.replaceChildren();
      article.cards = [];
      article.isDrawn = false;
    }
  }
  forgetParts();
}

async function draw(article) {
  if (article.isDrawn) return;
  const part = partOf(article.group.first);
  let rows;
  try {
    rows = await decoded(part);
  } catch (error) {
    article.body.replaceChildren(h("p", { class: "notice" }, `These responses cannot be shown: ${error.message}`));
    return;
  }
  if (!article.isNear || article.isDrawn) return;
  article.isDrawn = true;
  article.cards = article.rows.map((row) => buildCard(row, rows[row - index.parts[part][0]]));
  article.body.replaceChildren(...article.cards.map((card) => card.node));
  article.body.style.minHeight = "";
  article.cards.forEach(paint);
  dimCards(article);
}

function loadTexts(part) {
  if (!texts.has(part)) texts.set(part, load(`${folder}texts-${part}.js`, `texts-${part}`));
  return texts.get(part);
}

function decoded(part) {
  if (!parts.has(part)) {
    const [first, end] = index.parts[part];
    parts.set(part, Promise.all([loadTexts(part), load(`${folder}numbers-${part}.js`, `numbers-${part}`)])
      .then(([found, numbers]) => decodePart(found, numbers, index.rows.tokens.slice(first, end))));
  }
  return parts.get(part);
}

/** Keep the numbers of parts near the window alone: those of a whole step may take hundreds of megabytes. */
function forgetParts() {
  if (parts.size <= 8) return;
  const needed = new Set(articles.filter((article) => article.isNear).map((article) => partOf(article.group.first)));
  for (const part of parts.keys()) if (!needed.has(part) && parts.size > 8) parts.delete(part);
}

// Responses

function buildCard(row, values) {
  const reward = index.rows.reward[row];
  const outcome = reward === null ? ["none", "not verified"] : isRight(reward) ? ["right", "✓ right"] : ["wrong", "✗ wrong"];
  const finish = index.rows.finish[row];
  const isPartial = reward !== null && reward !== 0 && reward !== 1;
  const head = h("header", {},
    h("span", { class: `outcome ${outcome[0]}`, title: index.rows.reason[row] }, outcome[1] + (isPartial ? ` ${number(reward)}` : "")),
    h("span", { class: "muted" }, `${index.rows.tokens[row].toLocaleString("en-US")} tokens`),
    finish === "stop" ? null : h("span", { class: "badge rejected" }, finish === "length" ? "truncated" : finish),
    index.rows.credit[row] === null ? null : h("span", { class: "credit", title: "Sum of the process rewards: the PRM's belief that the response is right" }, "credit ", h("b", {}, number(index.rows.credit[row], true))),
    values.process_rewards ? creditLine(values.process_rewards) : null);
  const steps = h("div", { class: "steps" });
  const reason = index.rows.reason[row];
  const node = h("section", { class: `response ${outcome[0]}`, tabindex: "0", "aria-label": `response, ${outcome[1]}` }, head, steps,
    reason ? h("p", { class: "reason muted" }, "verifier: ", h("bdi", {}, reason)) : null);
  const card = { row, values, node, finish, spans: [], steps: [] };
  let start = 0;
  for (const end of values.steps.length ? values.steps : [values.ids.length]) {
    const [bar, text] = [h("div", { class: "bar-cell" }), h("div", { class: "text", dir: "auto" })];
    const step = { number: card.steps.length, bar, text, start, end, isDrawn: false, node: h("div", { class: "rstep" }, bar, text) };
    card.steps.push(step);
    steps.append(step.node);
    if (end <= TOKENS_AT_ONCE || start === 0) drawStep(card, step);
    else {
      step.node.later = () => { drawStep(card, step); paint(card); };
      const length = values.ends[end - 1] - (start ? values.ends[start - 1] : 0);
      step.node.style.minHeight = `${24 * Math.ceil(length / 30)}px`;
      stepObserver.observe(step.node);
    }
    start = end;
  }
  node.card = card;
  return card;
}

// A long response shows its first tokens at once, and each later reasoning step when the reader scrolls to it.
const TOKENS_AT_ONCE = 300;
const stepObserver = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) entry.target.later?.();
}, { scrollMargin: "400px" });

function drawStep(card, step) {
  if (step.isDrawn) return;
  step.isDrawn = true;
  step.node.later = null;
  step.node.style.minHeight = "";
  stepObserver.unobserve(step.node);
  for (let token = step.start; token < step.end; token++) step.text.append(buildToken(card, token, card.finish));
}

function buildToken(card, token, finish) {
  const { values } = card;
  const text = values.text.slice(token ? values.ends[token - 1] : 0, values.ends[token]);
  const span = document.createElement("span");
  span.textContent = text;
  span.token = token;
  card.spans[token] = span;
  if (!text) span.dataset.mark = finish === "stop" && token === values.ids.length - 1 ? "■" : "▯";
  else if (text.includes("\n")) span.dataset.mark = "↵";
  return span;
}

/** The running sum of the process rewards over the response, as a small line. */
function creditLine(rewards) {
  const [width, height, most] = [96, 22, 96];
  const sums = [0];
  rewards.forEach((reward) => sums.push(sums[sums.length - 1] + (reward || 0)));
  const points = sums.length <= most ? sums : Array.from({ length: most }, (_, at) => sums[Math.round((at * (sums.length - 1)) / (most - 1))]);
  const size = Math.max(...points.map(Math.abs), 1e-9);
  const path = points.map((sum, at) => `${((at * width) / (points.length - 1)).toFixed(1)} ${(height / 2 - (sum / size) * (height / 2 - 2)).toFixed(1)}`);
  return svg("svg", { class: "credit-line", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "running sum of the process rewards" },
    svg("title", {}, "Running sum of the process rewards, from the first token to the last"),
    svg("line", { class: "axis", x1: 0, x2: width, y1: height / 2, y2: height / 2 }),
    svg("path", { class: sums[sums.length - 1] >= 0 ? "up" : "down", d: `M${path.join("L")}` }));
}

/** Colour the tokens of a card and draw the bars of its reasoning steps. */
function paint(card) {
  const colouring = COLOURINGS[colour];
  const values = card.values[colour];
  const [from, to] = hits(card.values.text);
  card.spans.forEach((span, token) => {
    let name = values ? colourClass(values[token], index.scales[colour], colouring.isDiverging) : "";
    if (card.values.left_out.has(token)) name += " left-out";
    const start = token ? card.values.ends[token - 1] : 0;
    if (from.length && from.some((at, number) => at < card.values.ends[token] && to[number] > start)) name += " hit";
    if (span.className !== name) span.className = name;
  });
  const figures = card.steps.map(({ start, end }) => {
    if (!values || end === start) return NaN;
    let sum = 0;
    for (let token = start; token < end; token++) sum += values[token];
    return colouring.isSum ? sum : sum / (end - start);
  });
  const size = Math.max(...figures.map(Math.abs).filter((figure) => !Number.isNaN(figure)), index.scales[colour] || 0, 1e-9);
  card.steps.forEach(({ bar, isDrawn }, at) => {
    const figure = figures[at];
    if (!isDrawn) return undefined;
    if (Number.isNaN(figure)) return bar.replaceChildren();
    const fill = h("i", { class: colouring.isDiverging ? (figure >= 0 ? "up" : "down") : "plain" });
    const share = (50 * Math.abs(figure)) / size;
    fill.style.width = `${colouring.isDiverging ? share : 2 * share}%`;
    fill.style.left = `${colouring.isDiverging ? (figure >= 0 ? 50 : 50 - share) : 0}%`;
    bar.title = `reasoning step ${at + 1}: ${colouring.isSum ? "sum" : "mean"} of ${colouring.label} ${number(figure, true)}`;
    return bar.replaceChildren(h("span", { class: "track" }, fill), h("small", {}, number(figure, colouring.isDiverging)));
  });
}

function setColour(name) {
  colour = name;
  storeSetting("colour", name);
  const colouring = COLOURINGS[name];
  const scale = index.scales[name];
  document.querySelectorAll("#colours input").forEach((input) => { input.checked = input.value === name; });
  drawLegend(element("legend"), colouring, scale);
  const beta = index.beta === null ? "set in [prm]" : number(index.beta);
  element("caption").textContent = scale === undefined ? "This step was logged without figures of tokens."
    : scale === 0 ? colouring.zero
    : `${colouring.caption.replace("{beta}", beta)} The bar beside a reasoning step is the ${colouring.isSum ? "sum" : "mean"} of its tokens.`;
  articles.forEach((article) => article.cards.forEach(paint));
}

// Filters

function matches(row) {
  const reward = index.rows.reward[row];
  const outcome = element("outcome").value;
  if (outcome === "right" && !(reward !== null && isRight(reward))) return false;
  if (outcome === "wrong" && !(reward !== null && !isRight(reward))) return false;
  if (outcome === "none" && reward !== null) return false;
  return !element("truncated").checked || index.rows.finish[row] === "length";
}

function groupMatches({ group, rows }) {
  const [source, verdict] = [element("source").value, element("verdict").value];
  if (source && `=${group.source}` !== source) return false;
  if (verdict && (verdict === "kept") !== (group.filter === "kept")) return false;
  const rewards = rows.map((row) => index.rows.reward[row]).filter((reward) => reward !== null);
  if (element("outcome").value === "mixed" && !(rewards.some(isRight) && !rewards.every(isRight))) return false;
  return rows.some(matches);
}

const ORDERS = {
  highest: ({ rows }) => -Math.max(...rows.map((row) => index.rows.credit[row] ?? -Infinity)),
  lowest: ({ rows }) => Math.min(...rows.map((row) => index.rows.credit[row] ?? Infinity)),
  longest: ({ rows }) => -Math.max(...rows.map((row) => index.rows.tokens[row])),
  // By how much the PRM prefers a wrong response to a right one of the same problem.
  mistaken: ({ rows }) => {
    const credit = (wanted) => rows.filter((row) => index.rows.reward[row] !== null && isRight(index.rows.reward[row]) === wanted)
      .map((row) => index.rows.credit[row]).filter((value) => value !== null);
    return Math.min(...credit(true)) - Math.max(...credit(false));
  },
};

function applyFilters() {
  const order = ORDERS[element("order").value];
  const keyed = articles.map((article) => [order ? order(article) : article.number, article]);
  keyed.sort(([left, a], [right, b]) => left - right || a.number - b.number);
  let shown = 0;
  for (const [, article] of keyed) {
    article.isShown = groupMatches(article) && (!needle || article.hasNeedle);
    article.node.hidden = !article.isShown;
    shown += article.isShown;
    dimCards(article);
  }
  element("groups").append(...keyed.map(([, article]) => article.node));
  element("count").textContent = `${shown} of ${articles.length} groups`;
}

function dimCards(article) {
  article.cards.forEach((card) => card.node.classList.toggle("dim", !matches(card.row)));
}

async function search() {
  const wanted = element("search").value.trim().toLowerCase();
  needle = wanted;
  const contains = (text) => text.toLowerCase().includes(wanted);
  for (let part = 0; wanted && part < index.parts.length; part++) {
    if (!texts.has(part)) element("count").textContent = `searching ${part + 1} of ${index.parts.length} …`;
    const [found, first] = [await loadTexts(part), index.parts[part][0]];
    if (needle !== wanted) return; // the reader has typed on
    for (const article of articles) {
      if (partOf(article.group.first) !== part) continue;
      const { prompt, truth, source, problem } = article.group;
      article.hasNeedle = [prompt, truth, `${source} ${problem}`, ...article.rows.map((row) => index.rows.reason[row])].some(contains) ||
        article.rows.some((row) => contains(found[row - first]));
    }
  }
  applyFilters();
  articles.forEach((article) => article.cards.forEach(paint));
}

/** Return the starts and the ends of the searched text. */
function hits(text) {
  const [from, to] = [[], []];
  const lower = needle ? text.toLowerCase() : "";
  for (let at = needle ? lower.indexOf(needle) : -1; at >= 0 && from.length < 200; at = lower.indexOf(needle, at + needle.length)) {
    from.push(at);
    to.push(at + needle.length);
  }
  return [from, to];
}

function debounced(action, milliseconds) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}

// Tooltips and keys

function showTip(card, span) {
  const tip = element("tip");
  const text = span.textContent;
  tip.replaceChildren(
    h("bdi", { class: "token" }, text ? text.replaceAll("\n", "↵").replaceAll(" ", "␣").replaceAll("\t", "⇥") : "(no text of its own)"),
    h("table", {}, ...tokenFigures(card.values, span.token).map(([name, figure]) => h("tr", {}, h("th", {}, name), h("td", {}, figure)))));
  tip.hidden = false;
  const place = span.getClientRects()[0] || span.getBoundingClientRect();
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  tip.style.left = `${Math.max(8, Math.min(place.left, innerWidth - width - 8))}px`;
  tip.style.top = `${place.bottom + height + 12 > innerHeight ? Math.max(8, place.top - height - 6) : place.bottom + 6}px`;
}

function hideTip() {
  element("tip").hidden = true;
}

element("groups").addEventListener("pointerover", (event) => {
  const card = event.target.closest(".response")?.card;
  if (card && event.target.token !== undefined) showTip(card, event.target);
  else hideTip();
});
element("groups").addEventListener("pointerleave", hideTip);
element("groups").addEventListener("click", (event) => {
  const card = event.target.closest(".response")?.card;
  if (card && event.target.token !== undefined) setCursor(card, event.target.token);
});
document.addEventListener("scroll", hideTip, { capture: true, passive: true });

function currentArticle() {
  const focused = document.activeElement.closest?.("article.group");
  const shown = [...element("groups").children].filter((node) => !node.hidden);
  const chosen = focused && !focused.hidden ? focused : shown.find((node) => node.getBoundingClientRect().bottom > 150);
  return { shown, at: shown.indexOf(chosen) };
}

function selectGroup(article) {
  article.node.scrollIntoView({ block: "start" });
  article.node.focus({ preventScroll: true });
}

function moveGroup(by) {
  const { shown, at } = currentArticle();
  const isFocused = document.activeElement === shown[at] || shown[at]?.contains(document.activeElement);
  const next = shown[Math.max(0, Math.min(shown.length - 1, at + (isFocused ? by : by > 0 ? 0 : by)))];
  if (next) selectGroup(articles[Number(next.id.slice(1))]);
}

function currentCard() {
  const focused = document.activeElement.closest?.(".response");
  if (focused) return focused.card;
  const { shown, at } = currentArticle();
  return at < 0 ? null : articles[Number(shown[at].id.slice(1))].cards[0] || null;
}

function setCursor(card, token) {
  if (cursor) cursor.card.spans[cursor.token]?.classList.remove("at");
  const step = card.steps.find(({ end }) => token < end);
  if (!step) return;
  if (!step.isDrawn) {
    drawStep(card, step);
    paint(card);
  }
  const span = card.spans[token];
  cursor = { card, token };
  card.node.focus({ preventScroll: true });
  span.scrollIntoView({ block: "nearest" });
  span.classList.add("at");
  // After the scroll event, which hides tooltips.
  requestAnimationFrame(() => requestAnimationFrame(() => { if (cursor?.card === card && cursor.token === token) showTip(card, span); }));
}

function moveToken(by, isByStep) {
  const card = currentCard();
  if (!card) return;
  if (cursor?.card !== card) return setCursor(card, 0);
  let next = cursor.token + by;
  if (isByStep) {
    const starts = card.steps.map(({ start }) => start);
    next = by > 0 ? starts.find((start) => start > cursor.token) : starts.findLast((start) => start < cursor.token);
  }
  return setCursor(card, Math.max(0, Math.min(card.values.ids.length - 1, next ?? cursor.token)));
}

keys.set("j", () => moveGroup(1));
keys.set("k", () => moveGroup(-1));
keys.set("ArrowRight", (event) => moveToken(1, event.shiftKey));
keys.set("ArrowLeft", (event) => moveToken(-1, event.shiftKey));
keys.set("r", () => {
  const card = currentCard();
  const cards = articles.find((article) => article.cards.includes(card))?.cards || [];
  const isFocused = card?.node === document.activeElement;
  cards[(cards.indexOf(card) + (isFocused ? 1 : 0)) % cards.length]?.node.focus();
});
keys.set("o", () => {
  element("outcome").value = { "": "right", right: "wrong" }[element("outcome").value] || "";
  applyFilters();
});
keys.set("/", () => element("search").focus());
for (const [key_, id] of [["p", "previous"], ["n", "next"]]) keys.set(key_, () => element(id).href && element(id).click());

start().catch((error) => { element("summary").textContent = `This step cannot be shown: ${error.message}`; });
