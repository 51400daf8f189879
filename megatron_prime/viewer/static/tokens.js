"use strict";
// Numbers of tokens: decoding them, colouring by them, and writing them into tooltips.

/** What tokens can be coloured by. `of` reads the decoded numbers of a response. */
const COLOURINGS = {
  process_rewards: {
    label: "process reward", isSum: true, isDiverging: true,
    plus: "more right", minus: "more wrong",
    caption: "Blue tokens raised the PRM's belief that the response is right, orange tokens lowered it. The process reward of a " +
      "token is β times how much likelier the PRM finds it than the reference does; β is {beta}.",
    zero: "Every process reward is 0: the PRM still equals the reference.",
  },
  advantages: {
    label: "advantage", isDiverging: true,
    plus: "made likelier", minus: "made less likely",
    caption: "Training makes blue tokens likelier and orange tokens less likely. The advantage joins the outcome, compared with the " +
      "other responses of the group, with the process rewards from the token onwards.",
    zero: "Every advantage is 0: this step taught the policy nothing.",
  },
  log_ratio: {
    label: "log-ratio", isDiverging: true,
    plus: "likelier than before training", minus: "less likely",
    caption: "Blue tokens are likelier under the policy than under the reference, orange ones less likely: where training has " +
      "changed the model's mind.",
    zero: "Every log-ratio is 0: the policy still equals the reference.",
  },
  entropy: {
    label: "entropy", isDiverging: false,
    plus: "undecided", minus: "certain",
    caption: "The stronger the violet of a token, the less sure the policy was what to write there: these are the places where responses branch.",
    zero: "Every entropy is 0: the policy was certain of each token.",
  },
  gap: {
    label: "train/rollout gap", isDiverging: true,
    plus: "training engine higher", minus: "rollout engine higher",
    caption: "The training engine finds blue tokens likelier than the rollout engine did, orange ones less likely. Both run the same " +
      "weights, so strong colours mean that the engines compute differently.",
    zero: "Both engines agree exactly on every token.",
  },
};
const LEVELS = 10; // classes plus-1 ... plus-10, minus-1 ..., strong-1 ... of the style sheet

const halfFloats = (() => {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24
      : exponent === 31 ? (fraction ? NaN : Infinity) : (1 + fraction / 1024) * 2 ** (exponent - 15);
    table[bits] = bits & 32768 ? -size : size;
  }
  return table;
})();

function bytes(base64) {
  const text = atob(base64);
  const found = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index++) found[index] = text.charCodeAt(index);
  return found.buffer;
}

/** Return the numbers of the rows of one part: each with its text, ends of tokens and reasoning steps, and quantities. */
function decodePart(texts, numbers, tokens) {
  const lengths = new Uint16Array(bytes(numbers.lengths));
  const ids = new Int32Array(bytes(numbers.ids));
  const floats = {};
  for (const [name, value] of Object.entries(numbers)) {
    if (["lengths", "ids", "steps", "left_out", "turns", "versions"].includes(name)) continue;
    const halves = new Uint16Array(bytes(value));
    floats[name] = new Float32Array(halves.length);
    for (let index = 0; index < halves.length; index++) floats[name][index] = halfFloats[halves[index]];
  }
  let start = 0;
  return texts.map((text, row) => {
    const end = start + tokens[row];
    const values = { text, ids: ids.subarray(start, end), steps: numbers.steps[row] || [], left_out: new Set(numbers.left_out[row]),
      turns: turnsOf(numbers.turns?.[row] || []), versions: numbers.versions?.[row] || [], ends: new Uint32Array(tokens[row]) };
    for (let index = 0, sum = 0; index < tokens[row]; index++) values.ends[index] = sum += lengths[start + index];
    for (const name of Object.keys(floats)) {
      const part = floats[name].subarray(start, end);
      if (part.some((value) => !Number.isNaN(value))) values[name] = part;
    }
    values.log_ratio = difference(values.policy_logprobs, values.ref_logprobs);
    values.gap = difference(values.policy_logprobs, values.rollout_logprobs);
    start = end;
    return values;
  });
}

/** Return the turns of a response: first token, end of what the policy wrote, end of the reply, the environment's reward. */
function turnsOf(turns) {
  return turns.map(([ownEnd, end, reward], at) => ({ start: at ? turns[at - 1][1] : 0, ownEnd, end, reward }));
}

function difference(left, right) {
  return left && right ? left.map((value, index) => value - right[index]) : undefined;
}

/** Return the class of a token, or "" where there is nothing to show. */
function colourClass(value, scale, isDiverging) {
  if (value === undefined || Number.isNaN(value) || !scale) return "";
  const level = Math.min(LEVELS, Math.round((Math.abs(value) / scale) * LEVELS));
  if (level === 0) return "";
  return isDiverging ? `${value > 0 ? "plus" : "minus"}-${level}` : `strong-${level}`;
}

/** Draw the legend: the colours from one end of the scale to the other, with the values at the ends. */
function drawLegend(place, colouring, scale) {
  if (!scale) return place.replaceChildren();
  const levels = Array.from({ length: LEVELS }, (_, index) => index + 1);
  const classes = colouring.isDiverging
    ? [...levels.map((level) => `minus-${LEVELS + 1 - level}`), "", ...levels.map((level) => `plus-${level}`)]
    : ["", ...levels.map((level) => `strong-${level}`)];
  place.setAttribute("aria-label", `Scale of ${colouring.label}: from ${number(colouring.isDiverging ? -scale : 0)} to ${number(scale)}`);
  return place.replaceChildren(
    h("span", { class: "end" }, h("b", {}, `${colouring.isDiverging ? "≤ " : ""}${number(colouring.isDiverging ? -scale : 0)}`), h("small", {}, colouring.minus)),
    h("span", { class: "ramp" }, ...classes.map((name) => h("i", { class: name }))),
    h("span", { class: "end" }, h("b", {}, `≥ ${number(scale, colouring.isDiverging)}`), h("small", {}, colouring.plus)),
  );
}

/** Return the rows of the tooltip: all figures of one token. Figures of the policy are NaN where an environment wrote. */
function tokenFigures(values, token) {
  const isKnown = (name) => values[name] && !Number.isNaN(values[name][token]);
  const turn = values.turns.findIndex(({ end }) => token < end);
  const isReply = turn >= 0 && token >= values.turns[turn].ownEnd;
  const probability = (name) => (isKnown(name) ? `${percent(Math.exp(values[name][token]))} (log-prob ${number(values[name][token])})` : null);
  const plain = (name) => (isKnown(name) ? number(values[name][token], true) : null);
  const step = values.steps.findIndex((end) => token < end);
  return [
    ["token", `${token + 1} of ${values.ids.length}, id ${values.ids[token]}`],
    ["written by", turn < 0 ? null : isReply ? "the environment" : "the policy"],
    ["turn", turn < 0 ? null : `${isReply ? "reply to " : ""}${turn + 1} of ${values.turns.length}`],
    ["policy version", isReply ? null : values.versions.find(([end]) => token < end)?.[1] ?? null],
    ["reasoning step", isReply || step < 0 ? null : `${step + 1} of ${values.steps.length}`],
    ["process reward", plain("process_rewards")],
    ["advantage", plain("advantages")],
    ["log-ratio", plain("log_ratio")],
    ["entropy", isKnown("entropy") ? `${number(values.entropy[token])} nats` : null],
    ["train/rollout gap", plain("gap")],
    ["policy", probability("policy_logprobs")],
    ["rollout engine", probability("rollout_logprobs")],
    ["PRM", probability("prm_logprobs")],
    ["reference", probability("ref_logprobs")],
    ["training", values.left_out.has(token) ? "left out of the losses" : isReply ? "not trained on" : null],
  ].filter(([, text]) => text !== null);
}

function percent(share) {
  return `${share > 0.9995 && share < 1 ? ">99.9" : share < 0.0005 && share > 0 ? "<0.1" : (100 * share).toFixed(1)} %`;
}
