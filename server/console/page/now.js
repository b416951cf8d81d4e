// The present: counters of the engines, asked every 1.5 s and turned into rates.

import { data } from "./api.js";
import { chart } from "./chart.js";
import { byId, figure, tiles } from "./dom.js";
import { count, exactTime, percent, short } from "./format.js";

const KEPT = 120; // points: three minutes
const points = [];
let before = null;
let drawRate;
let drawQueue;

export function begin() {
  drawRate = chart(byId("chart-rate"), {
    title: "Output", unit: "tokens a second", show: (value) => (value === null ? "not known" : `${short(value)} tok/s`), axis: short,
    series: [{ name: "Output", kind: "local" }],
  });
  drawQueue = chart(byId("chart-queue"), {
    title: "Queue", unit: "sequences", show: (value) => count(value), axis: short, least: 1,
    series: [{ name: "running", kind: "local" }, { name: "waiting", kind: "supplier" }],
  });
}

const sum = (engines, name) => engines.reduce((total, engine) => total + engine[name], 0);

/** Ask once, and draw. */
export async function look() {
  const now = await data("now");
  phase(now);
  const rate = rates(before, now);
  before = now;
  const { engines } = now;
  const running = sum(engines, "running");
  const waiting = sum(engines, "waiting");
  const used = sum(engines, "pages_used");
  const total = sum(engines, "pages_total");
  const models = engines.map((engine) => engine.name).join(", ");
  tiles(byId("now-tiles"), [
    ["Output", figure(rate && short(rate.output), "tok/s"), models || "no model is loaded"],
    ["Prompts", figure(rate && short(rate.prompt), "tok/s"), "taken in, cached ones too"],
    ["Running", figure(count(running)), `${count(now.in_flight)} ${now.in_flight === 1 ? "answer" : "answers"} in flight`],
    ["Waiting", figure(count(waiting)), waiting ? "for a place in the batch" : "nobody waits"],
    ["KV cache in use", figure(total ? percent(used / total) : null), total ? `${count(used)} of ${count(total)} pages` : ""],
    ["Engine busy", figure(rate && rate.busy !== null ? percent(rate.busy) : null), "of the last 1.5 s"],
  ]);
  const label = exactTime(now.ts);
  points.push({ label, tick: label, values: [rate ? rate.output : null], queue: [running, waiting] });
  if (points.length > KEPT) points.shift();
  drawRate(points);
  drawQueue(points.map((point) => ({ ...point, values: point.queue })));
}

/** What happened between two looks, by the server's own clock. Null where there was no earlier one, or other engines since. */
function rates(old, now) {
  const names = (of) => of.engines.map((engine) => engine.name).join("\n");
  if (!old || names(old) !== names(now) || now.clock <= old.clock) return null;
  const each = (name) => Math.max(0, sum(now.engines, name) - sum(old.engines, name)) / (now.clock - old.clock);
  const timed = now.engines.length && now.engines.every((engine) => engine.device_seconds !== null);
  return { output: each("generation_tokens"), prompt: each("prompt_tokens"), busy: timed ? Math.min(1, each("device_seconds") / now.engines.length) : null };
}

function phase(now) {
  const stuck = now.engines.filter((engine) => !engine.alive).map((engine) => engine.name);
  const state = byId("phase");
  state.className = `state ${stuck.length ? "bad" : now.phase}`;
  const words = stuck.length ? `an engine is stuck: ${stuck.join(", ")}` : now.phase;
  if (state.textContent !== words) state.textContent = words;
}

/** The server did not answer. */
export function lost(words) {
  before = null;
  byId("phase").className = "state bad";
  byId("phase").textContent = words;
}
