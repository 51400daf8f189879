"use strict";
// The page of curves: one chart per panel, all runs in each, drawn as SVG.

const COLOURS = 8; // classes line-0 ... line-7 of the style sheet
const MARGIN = { left: 52, right: 12, top: 10, bottom: 26 };
const HEIGHT = 210;
const charts = [];
let data = null;
let smoothing = 0.6;

function start() {
  data = arrived.get("curves");
  if (!data) return;
  const most = Math.max(...data.runs.map((run) => run.steps.length));
  smoothing = most < 30 ? 0 : 0.6;
  const slider = document.getElementById("smoothing");
  slider.value = smoothing;
  slider.addEventListener("input", () => setSmoothing(Number(slider.value)));
  keys.set("s", () => setSmoothing(smoothing > 0 ? 0 : 0.6));
  const place = document.getElementById("charts");
  for (const panel of data.panels) {
    const runs = panel.kind === "stack" ? data.runs.map((_, index) => [index]) : [data.runs.map((_, index) => index)];
    for (const indexes of runs) {
      const chart = new Chart(panel, indexes.filter((index) => panel.series.some((s) => s.metric in data.runs[index].values)));
      if (chart.runs.length) charts.push(chart);
    }
  }
  place.append(...charts.map((chart) => chart.card));
  place.append(anyMetric());
  document.querySelectorAll(".run-name").forEach((name) => {
    if (data.runs.length > 1) name.classList.add(`line-${Number(name.dataset.run) % COLOURS}`);
  });
  const observer = new ResizeObserver(() => requestAnimationFrame(drawAll));
  observer.observe(place);
  setSmoothing(smoothing);
}

function setSmoothing(value) {
  smoothing = value;
  document.getElementById("smoothing").value = value;
  document.getElementById("smoothing-value").textContent = value.toFixed(2);
  drawAll();
}

/** Draw all charts. They are measured before the first is drawn: each later measurement would lay out the page again. */
function drawAll() {
  charts.forEach((chart) => chart.measure());
  charts.forEach((chart) => chart.draw());
}

/** Build the last card, whose metric the reader chooses. */
function anyMetric() {
  const names = [...new Set(data.runs.flatMap((run) => Object.keys(run.values)))].sort();
  const first = names.includes("policy/lr") ? "policy/lr" : names[0];
  const select = h("select", { id: "metric", "aria-label": "Metric" },
    ...names.map((name) => h("option", { value: name, selected: name === first }, name)));
  const panel = (name) => ({ key: "any", title: "Any metric", question: data.descriptions[name] || "", unit: "", kind: "lines",
    series: [{ metric: name, label: name, low: "", high: "" }], reference: null, is_share: false });
  const chart = new Chart(panel(first), data.runs.map((_, index) => index), select);
  charts.push(chart);
  select.addEventListener("change", () => {
    chart.panel = panel(select.value);
    chart.question.textContent = chart.panel.question;
    chart.draw();
  });
  return chart.card;
}

/** One chart in its card. */
class Chart {
  constructor(panel, runs, chooser = null) {
    this.panel = panel;
    this.runs = runs;
    this.legend = h("div", { class: "chart-legend" });
    this.box = h("div", { class: "chart-box" });
    this.tip = h("div", { class: "chart-tip", hidden: true });
    const run = panel.kind === "stack" && data.runs.length > 1 ? h("bdi", { class: "muted" }, ` ${data.runs[runs[0]].name}`) : null;
    this.unit = h("small", { class: "muted" });
    this.question = h("p", { class: "question" }, panel.question);
    this.card = h("figure", { class: "card chart", "data-panel": panel.key },
      h("figcaption", {}, h("h3", {}, panel.title, this.unit, run), this.question), chooser, this.box, this.legend);
    this.box.addEventListener("pointermove", (event) => this.point(event));
    this.box.addEventListener("pointerleave", () => charts.forEach((chart) => chart.unpoint()));
  }

  /** The lines that are shown: of each run and each series that it has. */
  lines() {
    const found = [];
    this.panel.series.forEach((series, number) => {
      for (const index of this.runs) {
        const run = data.runs[index];
        const values = run.values[series.metric];
        if (!values || values.every((value) => value === null)) continue;
        const several = data.runs.length > 1 && this.panel.kind !== "stack";
        found.push({ series, run, values, low: run.values[series.low], high: run.values[series.high],
          colour: (several ? index : number) % COLOURS, dash: several ? number % 4 : 0,
          label: several ? `${run.name}${this.panel.series.length > 1 ? `, ${series.label}` : ""}` : series.label });
      }
    });
    return found;
  }

  measure() {
    this.width = Math.max(240, this.box.clientWidth || 360);
  }

  draw() {
    const lines = this.lines();
    this.shown = this.panel.kind === "stack" ? stacked(lines) : lines.map((line) => ({ ...line, smooth: smoothed(line.values) }));
    this.scaleX(lines);
    this.scaleY();
    const drawing = svg("svg", { viewBox: `0 0 ${this.width} ${HEIGHT}`, width: this.width, height: HEIGHT, role: "img",
      "aria-label": `${this.panel.title}: ${this.panel.question}` });
    this.drawAxes(drawing);
    for (const line of [...this.shown].reverse()) drawing.append(...this.drawLine(line));
    this.cursor = svg("line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
    drawing.append(this.cursor);
    this.box.replaceChildren(drawing, this.tip);
    this.legend.replaceChildren(...(lines.length > 1 || this.panel.kind === "stack" ? this.shown.map((line) =>
      h("span", {}, key(line, this.panel.kind), h("bdi", {}, line.label))) : []));
  }

  scaleX(lines) {
    const steps = lines.flatMap((line) => [line.run.steps[0], line.run.steps[line.run.steps.length - 1]]);
    const [first, last] = steps.length ? [Math.min(...steps), Math.max(...steps)] : [0, 1];
    const wide = this.width - MARGIN.left - MARGIN.right;
    this.steps = [first, last];
    this.x = (step) => MARGIN.left + (last === first ? 0.5 : (step - first) / (last - first)) * wide;
    this.step = (x) => first + ((x - MARGIN.left) / wide) * (last - first);
  }

  scaleY() {
    let low = Infinity;
    let high = -Infinity;
    let least = Infinity;
    const take = (value) => {
      if (value === null || value === undefined) return;
      low = Math.min(low, value);
      high = Math.max(high, value);
      least = Math.min(least, value > 0 ? value : -1);
    };
    for (const line of this.shown) {
      for (const values of [line.values, line.low, line.high, line.top]) (values || []).forEach(take);
    }
    if (low > high) [low, high] = [0, 1];
    const isPlain = this.panel.kind !== "stack" && !this.panel.is_share && this.panel.reference === null;
    this.isLog = isPlain && least > 0 && high / low > 100;
    if (this.panel.reference !== null) [low, high] = [Math.min(low, this.panel.reference), Math.max(high, this.panel.reference)];
    if (this.panel.kind === "stack" || this.panel.is_share || (low > 0 && low < 0.5 * high)) low = Math.min(low, 0);
    const tall = HEIGHT - MARGIN.top - MARGIN.bottom;
    if (this.isLog) {
      const [from, to] = [Math.floor(Math.log10(least)), Math.max(Math.ceil(Math.log10(high)), Math.floor(Math.log10(least)) + 1)];
      this.ticks = Array.from({ length: to - from + 1 }, (_, index) => 10 ** (from + index));
      if (this.ticks.length > 6) this.ticks = this.ticks.filter((_, index) => index % 2 === 0);
      this.y = (value) => MARGIN.top + tall * (1 - (Math.log10(Math.max(value, 10 ** from)) - from) / (to - from));
      return;
    }
    if (high === low) [low, high] = [Math.min(low, 0), high > 0 ? high * 1.1 : low + 1];
    this.ticks = niceTicks(low, high, 4);
    const bottom = Math.min(low, this.ticks[0]);
    let top = Math.max(high, this.ticks[this.ticks.length - 1]);
    if (this.panel.is_share) top = Math.min(top, Math.max(1, high));
    this.y = (value) => MARGIN.top + tall * (1 - (value - bottom) / (top - bottom));
  }

  drawAxes(drawing) {
    for (const tick of this.ticks) {
      const y = this.y(tick);
      if (y < MARGIN.top - 1) continue;
      drawing.append(svg("line", { class: tick === 0 ? "axis" : "grid", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: y, y2: y }),
        svg("text", { class: "tick", x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, this.format(tick)));
    }
    for (const tick of niceTicks(...this.steps, Math.max(2, Math.floor(this.width / 90))).filter((t) => Number.isInteger(t))) {
      if (tick < this.steps[0] || tick > this.steps[1]) continue;
      drawing.append(svg("text", { class: "tick", x: this.x(tick), y: HEIGHT - 9, "text-anchor": "middle" }, String(tick)));
    }
    this.unit.textContent = `${this.panel.is_share ? "" : ` ${this.panel.unit}`}${this.isLog ? ", log scale" : ""}`;
    if (this.panel.reference !== null) {
      const y = this.y(this.panel.reference);
      drawing.append(svg("line", { class: "reference", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: y, y2: y }));
    }
  }

  drawLine(line) {
    const colour = `line-${line.colour}`;
    if (this.panel.kind === "stack") return [svg("path", { class: `area ${colour}`, d: this.area(line.run.steps, line.bottom, line.top) })];
    const parts = [];
    if (line.low && line.high) parts.push(svg("path", { class: `band ${colour}`, d: this.area(line.run.steps, line.low, line.high) }));
    const isSmooth = smoothing > 0 && line.values.filter((value) => value !== null).length > 5;
    const raw = this.path(line.run.steps, line.values);
    if (isSmooth) parts.push(svg("path", { class: `raw ${colour}`, d: raw.d }));
    const main = isSmooth ? this.path(line.run.steps, line.smooth) : raw;
    parts.push(svg("path", { class: `main ${colour} dash-${line.dash}`, d: main.d }));
    if (raw.points.length < 25) parts.push(...raw.points.map(([x, y]) => svg("circle", { class: `dot ${colour}`, cx: x, cy: y, r: 2.6 })));
    return parts;
  }

  /** A line through the values that exist: metrics such as held-out accuracy have one every few steps. */
  path(steps, values) {
    const known = steps.map((_, index) => index).filter((index) => values[index] !== null);
    const points = this.thinned(known, steps, values).map((index) => [this.x(steps[index]).toFixed(1), this.y(values[index]).toFixed(1)]);
    return { points, d: points.map(([x, y], index) => `${index ? "L" : "M"}${x} ${y}`).join("") };
  }

  /** Keep the first, the least, the largest and the last of the values of each pixel: more cannot be seen. */
  thinned(known, steps, values) {
    if (known.length < 4 * this.width) return known;
    const columns = new Map();
    for (const index of known) {
      const column = Math.round(this.x(steps[index]));
      const kept = columns.get(column);
      if (!kept) columns.set(column, [index, index, index, index]);
      else {
        if (values[index] < values[kept[1]]) kept[1] = index;
        if (values[index] > values[kept[2]]) kept[2] = index;
        kept[3] = index;
      }
    }
    return [...columns.values()].flatMap((kept) => [...new Set(kept)].sort((left, right) => left - right));
  }

  area(steps, low, high) {
    const all = steps.map((_, index) => index).filter((index) => low[index] !== null && high[index] !== null);
    const known = [...new Set([...this.thinned(all, steps, low), ...this.thinned(all, steps, high)])].sort((left, right) => left - right);
    const point = (index, values) => `${this.x(steps[index]).toFixed(1)} ${this.y(values[index]).toFixed(1)}`;
    if (!known.length) return "";
    return `M${known.map((index) => point(index, high)).join("L")}L${known.reverse().map((index) => point(index, low)).join("L")}Z`;
  }

  format(value) {
    return this.panel.is_share ? `${number(100 * value)} %` : number(value);
  }

  point(event) {
    const bounds = this.box.getBoundingClientRect();
    const wanted = this.step(((event.clientX - bounds.left) / bounds.width) * this.width);
    const steps = [...new Set(this.runs.flatMap((index) => data.runs[index].steps))];
    if (!steps.length) return;
    const step = steps.reduce((best, each) => (Math.abs(each - wanted) < Math.abs(best - wanted) ? each : best));
    charts.forEach((chart) => chart.mark(step));
    const rows = this.shown.map((line) => {
      const index = line.run.steps.indexOf(step);
      const value = index < 0 ? null : line.values[index];
      if (value === null) return null;
      const ends = line.low && line.high && line.low[index] !== null ? ` (${this.format(line.low[index])} to ${this.format(line.high[index])})` : "";
      return h("tr", {}, h("td", {}, key(line, this.panel.kind), h("bdi", {}, line.label)), h("td", { class: "number" }, this.format(value) + ends));
    }).filter((row) => row);
    this.tip.replaceChildren(h("b", {}, `step ${step}`), h("table", {}, ...rows));
    this.tip.hidden = false;
    const x = this.x(step);
    this.tip.style.left = `${x > this.width / 2 ? Math.max(0, x - this.tip.offsetWidth - 12) : x + 12}px`;
  }

  mark(step) {
    if (!this.cursor) return;
    this.cursor.setAttribute("x1", this.x(step));
    this.cursor.setAttribute("x2", this.x(step));
    this.cursor.setAttribute("visibility", step < this.steps[0] || step > this.steps[1] ? "hidden" : "visible");
  }

  unpoint() {
    this.tip.hidden = true;
    if (this.cursor) this.cursor.setAttribute("visibility", "hidden");
  }
}

function key(line, kind) {
  return svg("svg", { class: "key", viewBox: "0 0 18 8", width: 18, height: 8 }, kind === "stack"
    ? svg("rect", { class: `area line-${line.colour}`, width: 18, height: 8 })
    : svg("line", { class: `main line-${line.colour} dash-${line.dash}`, x1: 0, x2: 18, y1: 4, y2: 4 }));
}

/** Exponential average of the values, corrected for its start; missing values stay missing. */
function smoothed(values) {
  let mean = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = smoothing * mean + (1 - smoothing) * value;
    weight = smoothing * weight + (1 - smoothing);
    return mean / weight;
  });
}

/** Lines with `bottom` and `top`, each on the one before it; a missing value counts as 0 where another line has one. */
function stacked(lines) {
  const totals = new Map();
  return lines.map((line) => {
    const before = totals.get(line.run) || line.values.map(() => 0);
    const isKnown = line.values.map((_, index) => lines.some((other) => other.values[index] !== null));
    const top = line.values.map((value, index) => before[index] + (value || 0));
    totals.set(line.run, top);
    const only = (values) => values.map((value, index) => (isKnown[index] ? value : null));
    return { ...line, bottom: only(before), top: only(top) };
  });
}

function niceTicks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const unit = [1, 2, 5, 10].find((each) => each * power >= rough) * power;
  const first = Math.floor(low / unit + 1e-9);
  const last = Math.ceil(high / unit - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * unit).toPrecision(12)));
}

document.addEventListener("viewer-data", (event) => { if (event.detail === "curves") start(); });
