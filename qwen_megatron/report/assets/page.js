// Draws the charts of a report from the JSON in the page. Text enters the page as text only, never as markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 260, LEFT = 56, RIGHT = 10, TOP = 14, BOTTOM = 26;
const data = JSON.parse(document.getElementById("data").textContent);
const state = { axis: "steps", smoothing: 0, events: true, from: null, to: null };
const drawers = [];

// Numbers as people read them.

function short(value) {
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= size) return Number((value / size).toPrecision(4)) + unit;
  const digits = Number(value.toPrecision(4));
  return value !== 0 && Math.abs(value) < 1e-3 ? digits.toExponential() : String(digits);
}

function place(value) {
  if (state.axis === "tokens") return short(value) + " tokens";
  if (state.axis === "steps") return "step " + value.toLocaleString("en");
  const seconds = Math.round(value), hours = Math.floor(seconds / 3600), minutes = Math.floor(seconds / 60) % 60;
  return (hours ? hours + " h " : "") + (hours || minutes ? minutes + " min " : "") + (seconds % 60) + " s";
}

function timeUnit(span) {
  return span > 2 * 86400 ? [86400, "d"] : span > 7200 ? [3600, "h"] : span > 120 ? [60, "min"] : [1, "s"];
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step); i <= Math.floor(high / step); i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const factors = last - first <= 3 ? [1, 2, 5] : [1];
  const found = [];
  for (let power = first; power <= last; power++) for (const factor of factors) found.push(factor * 10 ** power);
  return found.filter((value) => value >= low && value <= high);
}

// Exponential moving average, corrected for its beginning.
function averaged(values, weight) {
  let sum = 0, norm = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return sum / norm;
  });
}

// Taken in both directions: an average of what came before alone lies above a falling loss.
function smoothed(line) {
  const values = line.means ?? line.values;
  const forward = averaged(values, state.smoothing);
  const backward = averaged([...values].reverse(), state.smoothing).reverse();
  return forward.map((value, i) => (value + backward[i]) / 2);
}

// Place of the last of the rising numbers that is not above the value; 0 before the first.
function lastUpTo(numbers, value) {
  let low = 0, high = numbers.length - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (numbers[middle] <= value) low = middle;
    else high = middle - 1;
  }
  return low;
}

function nearest(numbers, value) {
  const i = lastUpTo(numbers, value);
  return i + 1 < numbers.length && numbers[i + 1] - value < value - numbers[i] ? i + 1 : i;
}

// Elements.

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function html(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// A chart: what is drawn of each line, the scales, the picture.

function heights(chart) {
  if (!chart.stacked) return chart.lines.map((line) => line.values);
  const sums = [];
  for (const line of chart.lines) {
    const below = sums.at(-1);
    sums.push(line.values.map((value, i) => value + (below ? below[i] : 0)));
  }
  return sums;
}

function scales(chart, width, log) {
  const inside = (x) => (state.from === null || x >= state.from) && (state.to === null || x <= state.to);
  const xs = chart.lines.flatMap((line) => line[state.axis]).filter(inside);
  const tops = heights(chart);
  let ys = chart.lines.flatMap((line, n) => tops[n].filter((_, i) => inside(line[state.axis][i])));
  if (!ys.length) ys = tops.flat();
  const left = state.from ?? Math.min(...xs), right = state.to ?? Math.max(...xs);
  let low = Math.min(...ys), high = Math.max(...ys);
  const isLog = log && low > 0;
  if (isLog) [low, high] = [low / 1.1, high * 1.1];
  else if (chart.from_zero) [low, high] = [Math.min(low, 0), high * 1.05];
  else [low, high] = [low - 0.05 * (high - low), high + 0.05 * (high - low)];
  if (!(high > low)) {
    const spread = Math.abs(low) * 0.05 || 1;
    [low, high] = chart.from_zero ? [0, high + spread] : [low - spread, high + spread];
  }
  const span = right > left ? right - left : 1;
  const up = isLog ? Math.log10 : (value) => value;
  return {
    left, right: left + span, low, high, isLog,
    x: (value) => LEFT + ((width - LEFT - RIGHT) * (value - left)) / span,
    y: (value) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * (up(value) - up(low))) / (up(high) - up(low)),
    back: (pixel) => left + (span * (pixel - LEFT)) / (width - LEFT - RIGHT),
  };
}

function drawAxes(svg, scale, width) {
  for (const value of scale.isLog ? logTicks(scale.low, scale.high) : ticks(scale.low, scale.high, 5)) {
    const y = scale.y(value);
    svg.append(element("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
    svg.append(element("text", { class: "tick", x: LEFT - 6, y: y + 4, "text-anchor": "end" }, short(value)));
  }
  const [size, unit] = state.axis === "seconds" ? timeUnit(scale.right) : [1, ""];
  for (const value of ticks(scale.left / size, scale.right / size, Math.max(2, width / 110))) {
    if (state.axis === "steps" && !Number.isInteger(value)) continue;
    const x = scale.x(value * size), words = short(value) + (unit && " " + unit);
    svg.append(element("text", { class: "tick", x, y: HEIGHT - 8, "text-anchor": "middle" }, words));
  }
}

function drawEvents(svg, scale) {
  let lastFlag = -Infinity;
  for (const mark of data.events) {
    const at = mark[state.axis === "steps" ? "step" : state.axis];
    const isQuiet = ["checkpoint", "start", "end"].includes(mark.kind);
    if (at < scale.left || at > scale.right || (isQuiet && data.several)) continue;
    const x = scale.x(at);
    svg.append(element("line", { class: "event " + mark.kind, x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
    if (isQuiet || x - lastFlag < 56 || x > scale.x(scale.right) - 40) continue;
    svg.append(element("text", { class: "flag", x: x + 3, y: TOP - 3 }, mark.kind));
    lastFlag = x;
  }
}

function drawLines(svg, chart, scale) {
  const tops = heights(chart);
  chart.lines.forEach((line, n) => {
    const xs = line[state.axis], color = "c" + line.color;
    const points = (values) => values.map((value, i) => scale.x(xs[i]).toFixed(1) + "," + scale.y(value).toFixed(1));
    if (chart.stacked) {
      const floor = n ? tops[n - 1] : xs.map(() => 0);
      const ring = [...points(tops[n]), ...points(floor).reverse()].join(" ");
      svg.append(element("polygon", { class: "area " + color, points: ring }));
      return;
    }
    const smooth = state.smoothing > 0 && !line.held_out;
    const style = "line " + color + (line.held_out ? " dashed" : "");
    svg.append(element("polyline", { class: style + (smooth ? " raw" : ""), points: points(line.values).join(" ") }));
    if (smooth) {
      svg.append(element("polyline", { class: style, points: points(smoothed(line)).join(" ") }));
    }
    if (line.held_out || xs.length === 1)
      line.values.forEach((value, i) =>
        svg.append(element("circle", { class: "dot " + color, cx: scale.x(xs[i]), cy: scale.y(value), r: 2.5 })));
  });
}

// What stands at a place of the axis, in words: [colour or null, text] each.
function readings(chart, at) {
  const found = [];
  for (const line of chart.lines) {
    const i = nearest(line[state.axis], at);
    let words = line.name + ": " + Number(line.values[i].toPrecision(6)) + (chart.unit && " " + chart.unit);
    if (line.held_out) words += " (" + place(line[state.axis][i]) + ")";
    else if (state.smoothing > 0 && !chart.stacked)
      words += ", smoothed " + Number(smoothed(line)[i].toPrecision(6));
    found.push([line.color, words]);
  }
  return found;
}

function eventsNear(at, reach) {
  const key = state.axis === "steps" ? "step" : state.axis;
  const near = data.events.filter((mark) => Math.abs(mark[key] - at) <= reach);
  return near.map((mark) => [null, (data.several ? mark.run + ": " : "") + mark.kind + ", " + mark.text]);
}

function follow(figure, chart, box) {
  const svg = element("svg", { "aria-hidden": "true" }), tip = html("div", "tip");
  const says = figure.querySelector("[aria-live]"), log = figure.querySelector("[data-log]");
  let scale = null, pressed = null, at = null;
  tip.hidden = true;
  box.append(svg, tip);

  function draw() {
    const width = Math.max(box.clientWidth, 200);
    svg.setAttribute("viewBox", "0 0 " + width + " " + HEIGHT);
    svg.replaceChildren();
    scale = scales(chart, width, log !== null && log.checked);
    drawAxes(svg, scale, width);
    // Lines that leave the picture when it shows a part of the run end at its edge; dots on the edge are whole.
    const [x, inner] = [LEFT - 3, width - LEFT - RIGHT + 6];
    const clip = element("svg", { x, y: 0, width: inner, height: HEIGHT, viewBox: [x, 0, inner, HEIGHT].join(" ") });
    svg.append(clip);
    drawLines(clip, chart, scale);
    if (state.events) drawEvents(clip, scale);
    hide();
  }

  function hide() {
    tip.hidden = true;
    svg.querySelectorAll(".cross, .chosen").forEach((old) => old.remove());
  }

  // Shows what stands at a place; the nearest point of the first line decides where that is.
  function show(value) {
    hide();
    const xs = chart.lines[0][state.axis];
    at = xs[nearest(xs, Math.min(Math.max(value, scale.left), scale.right))];
    const x = scale.x(at);
    svg.append(element("line", { class: "cross", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
    const reach = (4 * (scale.right - scale.left)) / box.clientWidth;
    const rows = [...readings(chart, at), ...(state.events ? eventsNear(at, reach) : []).slice(0, 4)];
    tip.replaceChildren(html("b", "", place(at)), ...rows.map(([color, words]) => {
      const row = html("p");
      if (color !== null) row.append(html("i", "c" + color));
      row.append(words);
      return row;
    }));
    tip.hidden = false;
    const isRight = x > box.clientWidth / 2;
    tip.style.left = isRight ? "auto" : x + 10 + "px";
    tip.style.right = isRight ? box.clientWidth - x + 10 + "px" : "auto";
    return place(at) + ". " + rows.map(([, words]) => words).join("; ");
  }

  const pixel = (event) => event.clientX - box.getBoundingClientRect().left;
  box.addEventListener("pointermove", (event) => {
    show(scale.back(pixel(event)));
    if (pressed === null) return;
    const [from, to] = [pressed, pixel(event)].sort((a, b) => a - b);
    svg.append(element("rect", { class: "chosen", x: from, width: to - from, y: TOP, height: HEIGHT - TOP - BOTTOM }));
  });
  box.addEventListener("pointerdown", (event) => { if (event.pointerType === "mouse") pressed = pixel(event); });
  box.addEventListener("pointerleave", () => { pressed = null; hide(); });
  box.addEventListener("pointerup", (event) => {
    if (pressed !== null && Math.abs(pixel(event) - pressed) > 8)
      zoom(...[scale.back(pressed), scale.back(pixel(event))].sort((a, b) => a - b));
    pressed = null;
  });
  box.addEventListener("keydown", (event) => {
    const xs = chart.lines[0][state.axis], i = at === null ? -1 : nearest(xs, at);
    const next = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: xs.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    says.textContent = show(xs[Math.min(Math.max(next, 0), xs.length - 1)]);
  });
  box.addEventListener("blur", hide);
  if (log !== null) log.addEventListener("change", draw);
  new ResizeObserver(draw).observe(box);
  drawers.push(draw);
}

function zoom(from, to) {
  [state.from, state.to] = [from, to];
  document.getElementById("whole").hidden = from === null;
  drawers.forEach((draw) => draw());
}

function control(id, event, change) {
  const input = document.getElementById(id);
  input.addEventListener(event, () => {
    change(input);
    drawers.forEach((draw) => draw());
  });
}

document.querySelector(".controls").hidden = false;
control("axis", "change", (input) => {
  state.axis = input.value;
  zoom(null, null);
});
control("smoothing", "input", (input) => {
  state.smoothing = Number(input.value);
  document.getElementById("smoothing-value").textContent = input.value;
});
control("events", "change", (input) => { state.events = input.checked; });
document.getElementById("whole").addEventListener("click", () => zoom(null, null));
for (const chart of data.charts) {
  const figure = document.getElementById("chart-" + chart.name);
  follow(figure, chart, figure.querySelector(".plot"));
}
