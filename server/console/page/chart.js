// Small charts over time: lines with gaps where nothing is known, or stacked bars. One value is read out at a time, by pointer
// or by the arrow keys (the plot is a slider over its points), and a table holds them all.

import { el, svg, table } from "./dom.js";

const HEIGHT = 190;
const PAD = { left: 8, right: 8, top: 12, bottom: 24 };

/** Makes the chart in `figure`. `series`: [{name, kind}], kind a colour's class; `show` formats a value, `axis` a tick; `least`: between two ticks. */
export function chart(figure, { title, unit, bars = false, series, show, axis = show, least = 0 }) {
  const note = el("span", { class: "note" }, unit);
  const legend = el("span", { class: "legend" }, ...series.map(({ name, kind }) => el("span", { class: kind }, name)));
  const tip = el("div", { class: "tip", "aria-hidden": "true", hidden: true });
  const drawing = svg("svg", { "aria-hidden": "true" });
  const plot = el("div", { class: "plot", role: "slider", tabindex: "0", "aria-label": `${title}, ${unit}`, "aria-valuemin": "0" }, drawing, tip);
  const inside = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}: table` });
  const details = el("details", { class: "table", toggle: () => details.open && tabulate() }, el("summary", {}, "As a table"), inside);
  const state = { points: [], at: null, layout: null };
  figure.replaceChildren(el("figcaption", {}, title, note, series.length > 1 ? legend : null), plot, details);

  const words = (point) => series.map(({ name }, n) => `${series.length > 1 ? `${name} ` : ""}${show(point.values[n])}`);

  function tabulate() {
    const columns = [["Time", "t"], ...series.map(({ name }) => [name, "n"])];
    const rows = state.points.map((point) => [point.label, ...point.values.map((value) => show(value))]).reverse();
    inside.replaceChildren(table(title, columns, rows, "Nothing yet."));
  }

  function draw() {
    const width = plot.clientWidth;
    if (!width) return;
    drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    state.layout = layout(state.points, { bars, axis, least }, width);
    drawing.replaceChildren(...axes(state.points, state.layout, axis), ...(bars ? stacks : lines)(state.points, series, state.layout));
    point(state.at);
    if (details.open) tabulate();
  }

  /** Read out the point of this number; null: none. */
  function point(at) {
    const last = state.points.length - 1;
    state.at = at === null || last < 0 ? null : Math.max(0, Math.min(last, at));
    drawing.querySelector(".cursor")?.remove();
    tip.hidden = state.at === null;
    plot.setAttribute("aria-valuemax", String(Math.max(0, last)));
    plot.setAttribute("aria-valuenow", String(state.at ?? Math.max(0, last)));
    const shown = state.points[state.at ?? last];
    plot.setAttribute("aria-valuetext", shown ? `${shown.label}: ${words(shown).join(", ")}` : "nothing yet");
    if (state.at === null) return;
    const x = state.layout.x(state.at);
    drawing.append(svg("line", { class: "cursor", x1: x, x2: x, y1: PAD.top, y2: HEIGHT - PAD.bottom }));
    tip.replaceChildren(el("b", {}, shown.label), ...words(shown).map((line) => el("div", {}, line)));
    const room = plot.clientWidth - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(room, x + 12 + tip.offsetWidth > plot.clientWidth ? x - tip.offsetWidth - 12 : x + 12))}px`;
  }

  plot.addEventListener("pointermove", (event) => {
    if (state.layout && state.points.length) point(state.layout.nearest(event.clientX - plot.getBoundingClientRect().left));
  });
  plot.addEventListener("pointerleave", () => point(document.activeElement === plot ? state.at : null));
  plot.addEventListener("focus", () => point(state.at ?? state.points.length - 1));
  plot.addEventListener("blur", () => point(null));
  plot.addEventListener("keydown", (event) => {
    const last = state.points.length - 1;
    const at = state.at ?? last;
    const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: last, PageUp: at + 5, PageDown: at - 5 }[event.key];
    if (event.key === "Escape") point(null);
    if (to === undefined) return;
    event.preventDefault();
    point(to);
  });
  new ResizeObserver(draw).observe(plot);

  /** Draw these points: [{label, tick, values}], oldest first; a value may be null. `tick` names it on the axis. */
  return (points) => {
    if (state.at !== null && document.activeElement === plot) state.at += points.length - state.points.length;
    state.points = points;
    draw();
  };
}

function layout(points, { bars, axis, least }, width) {
  const values = points.flatMap((point) => {
    const known = point.values.filter((value) => value !== null);
    return bars ? [known.reduce((sum, value) => sum + value, 0)] : known;
  });
  const ticks = niceTicks(Math.max(0, ...values), least);
  // The labels stand left of the plot, however long they are.
  const left = PAD.left + 7 * Math.max(...ticks.map((tick) => axis(tick).length));
  const inner = width - left - PAD.right;
  const slot = inner / Math.max(1, bars ? points.length : points.length - 1);
  const x = (n) => left + (bars ? slot * (n + 0.5) : points.length > 1 ? slot * n : inner / 2);
  const y = (value) => HEIGHT - PAD.bottom - (value / ticks.at(-1)) * (HEIGHT - PAD.bottom - PAD.top);
  const nearest = (px) => Math.max(0, Math.min(points.length - 1, bars ? Math.floor((px - left) / slot) : Math.round((px - left) / slot)));
  return { width, left, slot, ticks, x, y, nearest, empty: values.length === 0 };
}

/** From 0 to at least `most` in three to five steps of 1, 2 or 5 times a power of ten; fewer where no step is below `least`. */
function niceTicks(most, least) {
  if (!(most > 0)) return [0, 1];
  const power = 10 ** Math.floor(Math.log10(most / 3));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => most / size <= 4.001 && size >= least) ?? least;
  return Array.from({ length: Math.ceil(most / step - 0.001) + 1 }, (_, n) => n * step);
}

function axes(points, { width, left, ticks, x, y, empty }, axis) {
  const out = ticks.flatMap((tick) => [
    svg("line", { class: tick ? "grid" : "axis", x1: left, x2: width - PAD.right, y1: y(tick), y2: y(tick) }),
    svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, axis(tick)),
  ]);
  const every = Math.max(1, Math.ceil((points.length * 64) / (width - left)));
  for (let n = points.length - 1; n >= 0; n -= every) {
    const half = points[n].tick.length * 3.2;
    if (x(n) - half < left - 6) continue;
    out.push(svg("text", { x: Math.min(x(n), width - half), y: HEIGHT - 6, "text-anchor": "middle" }, points[n].tick));
  }
  if (empty) out.push(svg("text", { class: "empty", x: (left + width) / 2, y: HEIGHT / 2, "text-anchor": "middle" }, points.length ? "not known in this window" : "nothing yet"));
  return out;
}

function lines(points, series, { x, y }) {
  return series.flatMap(({ kind }, s) => {
    const out = [];
    let run = [];
    const end = () => {
      if (run.length === 1) out.push(svg("circle", { class: kind, cx: x(run[0]), cy: y(points[run[0]].values[s]), r: 2.5 }));
      if (run.length > 1) out.push(svg("path", { class: kind, d: run.map((n, i) => `${i ? "L" : "M"}${x(n).toFixed(1)} ${y(points[n].values[s]).toFixed(1)}`).join("") }));
      run = [];
    };
    points.forEach((point, n) => (point.values[s] === null ? end() : run.push(n)));
    end();
    return out;
  });
}

function stacks(points, series, { x, y, slot }) {
  const thick = Math.max(2, Math.min(26, slot * 0.72));
  return points.flatMap((point, n) => {
    let below = 0;
    return series.flatMap(({ kind }, s) => {
      const value = point.values[s] ?? 0;
      if (!value) return [];
      const top = y(below + value);
      const bottom = y(below);
      below += value;
      // A hair of the card's colour between two parts; none is drawn so thin that it vanishes.
      return [svg("rect", { class: kind, x: x(n) - thick / 2, y: top, width: thick, height: Math.max(0.8, bottom - top - (below > value ? 1 : 0)) })];
    });
  });
}

/** A line without axes, as wide as a word, for a table. */
export function spark(values) {
  const most = Math.max(1e-9, ...values);
  const step = 74 / Math.max(1, values.length - 1);
  const d = values.map((value, n) => `${n ? "L" : "M"}${(1 + n * step).toFixed(1)} ${(20 - (value / most) * 18).toFixed(1)}`).join("");
  return el("span", { class: "spark local" }, svg("svg", { viewBox: "0 0 76 22", "aria-hidden": "true" }, svg("path", { d })));
}
