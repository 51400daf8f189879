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
  const [oldest, newest] = index.policy_versions;
  return `${index.groups.length} groups with ${index.rows.tokens.length} responses and ${tokens.toLocaleString("en-US")} tokens: ${share}; ` +
    `${kept} groups were kept for training. Sampled by policy version${oldest === newest ? "" : `s ${oldest} to`} ${newest}.`;
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
  const estimate = 120 + Math.min(460, 90 + Math.max(...rows.map((row) => index.rows.tokens[row])) * 2);
  node.style.minHeight = `${estimate}px`;
  node.style.containIntrinsicBlockSize = `auto ${estimate}px`;
  return { group, number, rows, node, body, estimate, part: partOf(group.first), isNear: false, isDrawn: false, cards: [] };
}

function watch(entries) {
  for (const { target, isIntersecting, boundingClientRect } of entries) {
    const article = articles[Number(target.id.slice(1))];
    article.isNear = isIntersecting;
    if (isIntersecting) draw(article);
    else if (article.isDrawn) {
      // A filter hides a group: then it has no height of its own.
      article.node.style.minHeight = `${boundingClientRect.height || article.estimate}px`;
      article.body.replaceChildren();
      article.cards = [];
      article.isDrawn = false;
    }
  }
  forgetParts();
}

async function draw(article) {
  if (article.isDrawn) return;
  const { part } = article;
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
  article.node.style.minHeight = "";
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
  const needed = new Set(articles.filter((article) => article.isNear).map((article) => article.part));
  for (const part of parts.keys()) if (!needed.has(part) && parts.size > 8) parts.delete(part);
}

// Colours and filters

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
    : `${colouring.caption.replace("{beta}", beta)} The bar beside a reasoning step is the ${colouring.isSum ? "sum" : "mean"} of its tokens.${
      index.has_turns ? " Shaded text was written by the environment; the bar of a turn includes the reply to it." : ""}`;
  repaint();
}

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
  const nodes = keyed.map(([, article]) => article.node);
  if (nodes.some((node, at) => node !== element("groups").children[at])) element("groups").append(...nodes);
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
      if (article.part !== part) continue;
      const { prompt, truth, source, problem } = article.group;
      article.hasNeedle = [prompt, truth, `${source} ${problem}`, ...article.rows.map((row) => index.rows.reason[row])].some(contains) ||
        article.rows.some((row) => contains(found[row - first]));
    }
  }
  applyFilters();
  repaint();
}

function debounced(action, milliseconds) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}

// Tooltips and keys

let explained = null; // the token under the tooltip, and where it was when the tooltip was placed

function showTip(card, span) {
  const tip = element("tip");
  const text = span.textContent;
  tip.replaceChildren(
    h("bdi", { class: "token" }, text ? text.replaceAll("\n", "↵").replaceAll(" ", "␣").replaceAll("\t", "⇥") : "(no text of its own)"),
    h("table", {}, ...tokenFigures(card.values, span.token).map(([name, figure]) => h("tr", {}, h("th", {}, name), h("td", {}, figure)))));
  tip.hidden = false;
  const place = placeOf(span);
  explained = { span, place };
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  tip.style.left = `${Math.max(8, Math.min(place.left, innerWidth - width - 8))}px`;
  tip.style.top = `${place.bottom + height + 12 > innerHeight ? Math.max(8, place.top - height - 6) : place.bottom + 6}px`;
}

function placeOf(span) {
  return span.getClientRects()[0] || span.getBoundingClientRect();
}

function hideTip() {
  element("tip").hidden = true;
  explained = null;
}

/** Hide the tooltip if its token has moved: the event of a scroll may arrive after the tooltip was placed behind it. */
function hideTipOfMovedToken() {
  if (!explained) return;
  const { left, top } = placeOf(explained.span);
  if (left !== explained.place.left || top !== explained.place.top) hideTip();
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
document.addEventListener("scroll", hideTipOfMovedToken, { capture: true, passive: true });

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

/** Return the element of a token, or undefined where its piece is not drawn. */
function spanOf(card, token) {
  const piece = card.pieces.find(({ end }) => token < end);
  return piece?.spans[token - piece.start];
}

function setCursor(card, token) {
  if (cursor) spanOf(cursor.card, cursor.token)?.classList.remove("at");
  const piece = card.pieces.find(({ end }) => token < end);
  if (!piece) return;
  drawPiece(piece);
  const span = spanOf(card, token);
  cursor = { card, token };
  card.node.focus({ preventScroll: true });
  span.scrollIntoView({ block: "nearest" });
  span.classList.add("at");
  showTip(card, span);
}

function moveToken(by, isByStep) {
  const card = currentCard();
  if (!card) return;
  if (cursor?.card !== card) return setCursor(card, 0);
  let next = cursor.token + by;
  if (isByStep) {
    const starts = card.steps.map(([start]) => start);
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
