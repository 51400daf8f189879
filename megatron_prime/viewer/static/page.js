"use strict";
// What all pages share: data that arrive by script, the theme, the list of keys, and a few functions to build elements.
// No text of a run is ever parsed as HTML: elements are built one by one, and texts are text nodes.

const arrived = new Map();

/** Take a value from a data file. The files are scripts, because browsers do not let a page fetch files beside it. */
function viewerData(key, value) {
  arrived.set(key, value);
  document.dispatchEvent(new CustomEvent("viewer-data", { detail: key }));
}

// Where the browser supports it, the policy of the page forbids every script whose address has not passed this check.
const addresses = { createScriptURL: (url) => {
  if (!/^(\.\.\/)?data\/[\w./-]+\.js$/.test(url) || url.includes("..", 1)) throw new TypeError(`no data file: ${url}`);
  return url;
} };
const policy = window.trustedTypes ? window.trustedTypes.createPolicy("megatron-prime", addresses) : addresses;

/** Load a data file and return its value; it is forgotten here, so that the caller decides how long it stays. */
function load(url, key) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = policy.createScriptURL(url);
    script.addEventListener("load", () => {
      script.remove();
      if (!arrived.has(key)) return reject(new Error(`${url} has no data`));
      const value = arrived.get(key);
      arrived.delete(key);
      resolve(value);
    });
    script.addEventListener("error", () => { script.remove(); reject(new Error(`${url} is missing`)); });
    document.head.append(script);
  });
}

/** Build an HTML element: properties or attributes, then children (nodes or texts). */
function h(tag, attributes = {}, ...children) {
  return built(document.createElement(tag), attributes, children);
}

/** Build an SVG element. */
function svg(tag, attributes = {}, ...children) {
  return built(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function built(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return a number with three significant digits and a real minus sign. */
function number(value, isSigned = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  let text = size === 0 ? "0" : size >= 1e6 || size < 1e-4 ? size.toExponential(2) : String(Number(size.toPrecision(3)));
  if (size >= 1000 && size < 1e6) text = Math.round(size).toLocaleString("en-US");
  text = text.replace("e-", "e−").replace("e+", "e");
  return (value < 0 ? "−" : isSigned && value > 0 ? "+" : "") + text;
}

/** Return a setting that an earlier page has stored; storage may be switched off. */
function setting(name) {
  try { return localStorage.getItem(`megatron-prime-${name}`); } catch { return null; }
}

function storeSetting(name, value) {
  try { localStorage.setItem(`megatron-prime-${name}`, value); } catch { /* the page works without */ }
}

// Before the body is drawn, so that a dark page does not flash white.
if (["light", "dark"].includes(setting("theme"))) document.documentElement.dataset.theme = setting("theme");

function switchTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const next = (document.documentElement.dataset.theme || system) === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  storeSetting("theme", next);
  document.dispatchEvent(new CustomEvent("viewer-theme"));
}

/** Key -> function; pages add theirs. */
const keys = new Map([
  ["d", switchTheme],
  ["?", () => document.getElementById("keys").showModal()],
]);

document.addEventListener("keydown", (event) => {
  const field = event.target.closest("input:not([type=radio], [type=checkbox], [type=range]), select, textarea");
  if (event.key === "Escape" && field) field.blur();
  if (field || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const action = keys.get(event.key);
  if (action) {
    event.preventDefault();
    action(event);
  }
});

document.addEventListener("DOMContentLoaded", () => {
  document.getElementById("theme").addEventListener("click", switchTheme);
  document.getElementById("help").addEventListener("click", keys.get("?"));
});
