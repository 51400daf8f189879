"use strict";
// Responses of a group. A response is cut into pieces of about a hundred tokens; those near the window are drawn and
// coloured, and the others are boxes of about their height, so that responses of any length cost the same.

const PIECE = 128; // tokens after which a piece ends with the reasoning step
const LONGEST_PIECE = 192; // a longer reasoning step is cut too, at a line break or a space if it has one
const CHARACTERS_PER_LINE = 30; // estimates, for the heights of boxes
const LINE_HEIGHT = 24;
const SLICE = 12; // milliseconds of colouring between two frames
let painting = 0; // grows with every change of the colours or the search

// The first margin is around the window, the second around what the reader sees within a response.
const pieceObserver = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting, boundingClientRect } of entries) {
    if (isIntersecting) drawPiece(target.piece);
    else clearPiece(target.piece, boundingClientRect.height);
  }
}, { rootMargin: "200px 0px", scrollMargin: "200px 0px" });

function buildCard(row, values) {
  const reward = index.rows.reward[row];
  const outcome = reward === null ? ["none", "not verified"] : isRight(reward) ? ["right", "✓ right"] : ["wrong", "✗ wrong"];
  const finish = index.rows.finish[row];
  const isPartial = reward !== null && reward !== 0 && reward !== 1;
  const count = index.rows.tokens[row];
  const head = h("header", {},
    h("span", { class: `outcome ${outcome[0]}`, title: index.rows.reason[row] }, outcome[1] + (isPartial ? ` ${number(reward)}` : "")),
    h("span", { class: "muted" }, `${count.toLocaleString("en-US")} token${count === 1 ? "" : "s"}`),
    values.turns.length ? h("span", { class: "badge" }, `${values.turns.length} turn${values.turns.length === 1 ? "" : "s"}`) : null,
    !finish || finish === "stop" ? null : h("span", { class: "badge rejected" }, finish === "length" ? "truncated" : finish),
    index.rows.credit[row] === null ? null : h("span", { class: "credit", title: "Sum of the process rewards: the PRM's belief that the response is right" }, "credit ", h("b", {}, number(index.rows.credit[row], true))),
    values.process_rewards ? creditLine(values.process_rewards) : null);
  const steps = h("div", { class: "steps" });
  const reason = index.rows.reason[row];
  const node = h("section", { class: `response ${outcome[0]}`, tabindex: "0", "aria-label": `response, ${outcome[1]}` }, head, steps,
    reason ? h("p", { class: "reason muted" }, "verifier: ", h("bdi", {}, reason)) : null);
  const card = { row, values, node, finish, figures: {} };
  card.steps = stepsOf(values);
  card.pieces = piecesOf(values, card.steps).map((segments) => buildPiece(card, segments));
  if (count) steps.append(...card.pieces.map((piece) => piece.node));
  else steps.append(h("p", { class: "muted empty" }, "(an empty response)"));
  if (card.pieces.length) drawPiece(card.pieces[0]);
  node.card = card;
  return card;
}

/** Return [start, end, name, turn, is it a reply] of each reasoning step and each reply; together they are all tokens. */
function stepsOf({ ids, steps, turns }) {
  const borders = new Set([...steps, ...turns.flatMap(({ ownEnd, end }) => [ownEnd, end]), ids.length]);
  borders.delete(0);
  const ends = [...borders].filter((end) => end <= ids.length).sort((left, right) => left - right);
  let count = 0;
  return ends.map((end, at) => {
    const turn = turns.findIndex((each) => end <= each.end);
    const isReply = turn >= 0 && end > turns[turn].ownEnd;
    if (!isReply) count += 1;
    return [at ? ends[at - 1] : 0, end, isReply ? `reply to turn ${turn + 1}` : `reasoning step ${count}`, turn, isReply];
  });
}

/** Return the pieces: lists of segments, each a reasoning step or a part of one. */
function piecesOf(values, steps) {
  const pieces = [];
  let size = PIECE;
  steps.forEach(([first, end], step) => {
    for (let start = first, stop; start < end; start = stop) {
      stop = end - start <= LONGEST_PIECE ? end : cutOf(values, start + PIECE, start + LONGEST_PIECE);
      if (size >= PIECE || size + stop - start > LONGEST_PIECE) {
        pieces.push([]);
        size = 0;
      }
      pieces[pieces.length - 1].push({ step, start, end: stop, isFirst: start === first });
      size += stop - start;
    }
  });
  return pieces;
}

/** Return the last good place to cut a long reasoning step. */
function cutOf(values, from, to) {
  const isGood = [(token) => textOf(values, token - 1).includes("\n"), (token) => /^\s/.test(textOf(values, token))];
  for (const test of isGood) {
    for (let token = to; token > from; token--) if (test(token)) return token;
  }
  return to;
}

function textOf(values, token) {
  return values.text.slice(token ? values.ends[token - 1] : 0, values.ends[token]);
}

function buildPiece(card, segments) {
  const { ends } = card.values;
  const length = (start, end) => ends[end - 1] - (start ? ends[start - 1] : 0);
  const lines = segments.reduce((sum, { start, end }) => sum + Math.max(1, Math.ceil(length(start, end) / CHARACTERS_PER_LINE)), 0);
  const node = h("div", { class: "piece" });
  node.style.minHeight = `${LINE_HEIGHT * lines}px`;
  const piece = { card, segments, node, start: segments[0].start, end: segments[segments.length - 1].end, spans: [] };
  node.piece = piece;
  pieceObserver.observe(node);
  return piece;
}

function drawPiece(piece) {
  if (piece.spans.length) return;
  const { card } = piece;
  piece.node.replaceChildren(...piece.segments.flatMap((segment) => {
    const text = h("div", { class: "text", dir: "auto" });
    for (let token = segment.start; token < segment.end; token++) text.append(buildToken(piece, token));
    segment.bar = h("div", { class: "bar-cell" });
    const [start, , , turn, isReply] = card.steps[segment.step];
    const row = h("div", { class: `rstep${isReply ? " reply" : ""}` }, segment.bar, text);
    const isTurn = turn >= 0 && segment.isFirst && start === card.values.turns[turn].start;
    segment.turnBar = isTurn ? h("div", { class: "bar-cell" }) : null;
    return isTurn ? [turnHeading(card, turn, segment.turnBar), row] : [row];
  }));
  piece.node.style.minHeight = "";
  paint(piece, figuresOf(card));
}

function turnHeading(card, turn, bar) {
  const { turns } = card.values;
  const { reward } = turns[turn];
  return h("div", { class: "rstep turn" }, bar, h("div", {}, `turn ${turn + 1} of ${turns.length}`,
    reward ? h("span", { title: "The environment's reward for the turn, besides the outcome" }, `, environment ${number(reward, true)}`) : null));
}

/** Remove the tokens of a piece that has left the window. Its height is 0 if a filter has hidden it. */
function clearPiece(piece, height) {
  if (!piece.spans.length || !height) return;
  piece.node.style.minHeight = `${height}px`;
  piece.node.replaceChildren();
  piece.spans = [];
}

function buildToken(piece, token) {
  const { values, finish } = piece.card;
  const text = textOf(values, token);
  const span = document.createElement("span");
  span.token = token;
  piece.spans.push(span);
  const line = text.indexOf("\n");
  if (line < 0) span.textContent = text;
  else span.append(text.slice(0, line), h("i", { "data-mark": "↵" }), text.slice(line));
  if (!text) span.dataset.mark = markOf(values, token, finish);
  return span;
}

/** Return the sign of a token without text: the end of a turn, a token of the chat template, or a part of a character. */
function markOf({ ids, turns }, token, finish) {
  const turn = turns.find(({ end }) => token < end);
  if (turn && token >= turn.ownEnd) return "▫";
  const isEnd = turn && turn !== turns[turns.length - 1] ? token === turn.ownEnd - 1 : finish === "stop" && token === ids.length - 1;
  return isEnd ? "■" : "▯";
}

/** The running sum of the process rewards over the response, as a small line. */
function creditLine(rewards) {
  const [width, height, most] = [96, 22, 96];
  const sums = new Float64Array(rewards.length + 1);
  rewards.forEach((reward, at) => { sums[at + 1] = sums[at] + (reward || 0); });
  const points = Array.from({ length: Math.min(most, sums.length) }, (_, at, all = Math.min(most, sums.length) - 1) =>
    sums[Math.round((at * (sums.length - 1)) / Math.max(all, 1))]);
  const size = Math.max(...points.map(Math.abs), 1e-9);
  const path = points.map((sum, at) => `${((at * width) / (points.length - 1 || 1)).toFixed(1)} ${(height / 2 - (sum / size) * (height / 2 - 2)).toFixed(1)}`);
  return svg("svg", { class: "credit-line", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "running sum of the process rewards" },
    svg("title", {}, "Running sum of the process rewards, from the first token to the last"),
    svg("line", { class: "axis", x1: 0, x2: width, y1: height / 2, y2: height / 2 }),
    svg("path", { class: sums[sums.length - 1] >= 0 ? "up" : "down", d: `M${path.join("L")}` }));
}

// Colours

/** Return the values of each reasoning step and turn of a card in the chosen colour, and the size of the largest one. */
function figuresOf(card) {
  const values = card.values[colour];
  if (!values) return null;
  const { isSum } = COLOURINGS[colour];
  const figure = (start, end) => {
    let [sum, known] = [0, 0];
    for (let token = start; token < end; token++) {
      if (!Number.isFinite(values[token])) continue;
      sum += values[token];
      known += 1;
    }
    return known === 0 ? NaN : isSum ? sum : sum / known;
  };
  card.figures[colour] ??= {
    steps: card.steps.map(([start, end]) => figure(start, end)),
    turns: card.values.turns.map(({ start, end }) => figure(start, end)),
  };
  const { steps, turns } = card.figures[colour];
  return { steps, turns, size: [...steps, ...turns].reduce((most, each) => Math.max(most, Math.abs(each) || 0), index.scales[colour] || 1e-9) };
}

/** Colour the tokens of a piece, mark what is searched, and draw the bars of its reasoning steps. */
function paint(piece, figures) {
  const { values } = piece.card;
  const numbers = values[colour];
  const { isDiverging } = COLOURINGS[colour];
  const scale = index.scales[colour];
  const hits = hitsOf(piece);
  let hit = 0;
  piece.spans.forEach((span, at) => {
    const token = piece.start + at;
    let name = numbers ? colourClass(numbers[token], scale, isDiverging) : "";
    if (values.left_out.has(token)) name += " left-out";
    if (hits.length) {
      const start = token ? values.ends[token - 1] : 0;
      while (hit < hits.length && hits[hit] + needle.length <= start) hit += 1;
      if (hit < hits.length && hits[hit] < values.ends[token]) name += " hit";
    }
    if (cursor?.card === piece.card && cursor.token === token) name += " at";
    if (span.className !== name) span.className = name;
  });
  for (const { step, bar, turnBar, isFirst } of piece.segments) {
    const [, , name, turn] = piece.card.steps[step];
    if (isFirst) drawBar(bar, name, figures?.steps[step] ?? NaN, figures);
    if (turnBar) drawBar(turnBar, `turn ${turn + 1} with the reply`, figures?.turns[turn] ?? NaN, figures);
  }
}

function drawBar(bar, name, figure, figures) {
  if (Number.isNaN(figure)) return bar.replaceChildren();
  const colouring = COLOURINGS[colour];
  const fill = h("i", { class: colouring.isDiverging ? (figure >= 0 ? "up" : "down") : "plain" });
  const share = (50 * Math.abs(figure)) / figures.size;
  fill.style.width = `${colouring.isDiverging ? share : 2 * share}%`;
  fill.style.left = `${colouring.isDiverging ? (figure >= 0 ? 50 : 50 - share) : 0}%`;
  bar.title = `${name}: ${colouring.isSum ? "sum" : "mean"} of ${colouring.label} ${number(figure, true)}`;
  return bar.replaceChildren(h("span", { class: "track" }, fill), h("small", {}, number(shortened(figure), colouring.isDiverging)));
}

/** Small figures have many zeros: two digits after them fit beside the text, and the title has the third. */
function shortened(figure) {
  return Math.abs(figure) < 0.01 ? Number(figure.toPrecision(2)) : figure;
}

/** Return where the searched text begins, in all places that touch the piece. */
function hitsOf({ card, start, end }) {
  const found = [];
  if (!needle) return found;
  const { text, ends } = card.values;
  const from = Math.max(0, (start ? ends[start - 1] : 0) - needle.length);
  const lower = text.slice(from, ends[end - 1] + needle.length).toLowerCase();
  for (let at = lower.indexOf(needle); at >= 0; at = lower.indexOf(needle, at + 1)) found.push(from + at);
  return found;
}

/** Paint all pieces that are drawn, a few milliseconds at a time, so that the page goes on answering. */
async function repaint() {
  const mine = ++painting;
  const pieces = articles.flatMap((article) => article.cards).flatMap((card) => card.pieces).filter((piece) => piece.spans.length);
  let started = performance.now();
  for (const piece of pieces) {
    if (performance.now() - started > SLICE) {
      await new Promise(requestAnimationFrame);
      if (mine !== painting) return;
      started = performance.now();
    }
    paint(piece, figuresOf(piece.card));
  }
}
