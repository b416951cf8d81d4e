// A window of the books: tiles, two charts, who answered, who asked most, and the price of an API beside it.

import { data } from "./api.js";
import { chart, spark } from "./chart.js";
import { byId, el, figure, table, tiles } from "./dom.js";
import { count, dayOf, joules, percent, short, timeOfDay, usd, UNKNOWN } from "./format.js";

let drawCost;
let drawShare;

export function begin() {
  drawCost = chart(byId("chart-cost"), {
    title: "Cost per accepted task", unit: "US dollars", show: usd,
    series: [{ name: "all of it", kind: "local" }, { name: "suppliers’ part", kind: "supplier" }],
  });
  drawShare = chart(byId("chart-share"), {
    title: "Who answered", unit: "requests", bars: true, show: count, axis: short, least: 1,
    series: [{ name: "local", kind: "local" }, { name: "suppliers", kind: "supplier" }, { name: "nobody", kind: "nobody" }],
  });
}

export const chosen = () => document.querySelector("input[name=window]:checked").value;

/** Ask and draw; whether some of the window is still to be read. */
export async function look() {
  const [found, limits] = await Promise.all([data("books", { window: chosen(), beside: byId("beside-field").value.trim() }), data("budgets")]);
  if (found.window !== chosen()) return true; // another was chosen meanwhile
  const { total, steps } = found;
  summary(found);
  const points = steps.map((step) => ({ ...named(step, found.window), step }));
  drawCost(points.map((point) => ({ ...point, values: [point.step.usd_per_accepted, point.step.paid_usd_per_accepted] })));
  drawShare(points.map((point) => ({ ...point, values: [point.step.local, point.step.supplier, point.step.nobody] })));
  places(found.places, total);
  users(found.users, total);
  budgets(limits.budgets);
  beside(found.beside, total);
  return found.pending > 0;
}

function named({ start, end }, window) {
  const until = Math.min(end, Date.now() / 1000);
  const days = window === "7d" || window === "30d";
  const label = window === "30d" ? `${dayOf(start)} from ${timeOfDay(start)}` : `${days ? `${dayOf(start)} ` : ""}${timeOfDay(start)} to ${timeOfDay(until)}`;
  return { label, tick: days ? dayOf(start) : timeOfDay(start) };
}

function summary({ total, pending, cut }) {
  const notes = [pending ? `reading: ${pending} steps to go` : "", cut ? "of busy steps only the newest 200,000 requests and the 1,000 busiest keys are summed" : ""];
  const words = notes.filter(Boolean).join("; ");
  if (byId("books-note").textContent !== words) byId("books-note").textContent = words;
  const each = total.usd_per_accepted;
  const unknown = total.supplier_unknown + total.local_unknown;
  const why = !total.attempts ? "nothing was asked" : unknown ? `${count(unknown)} of ${count(total.attempts)} tries have no known cost` : total.joules_per_accepted === null ? "energy is not known" : `${joules(total.joules_per_accepted)} of this machine each`;
  tiles(byId("books-tiles"), [
    ["Cost per accepted task", figure(each === null ? null : usd(each)), why],
    ["Accepted", figure(count(total.accepted), `of ${count(total.requests)}`), total.requests ? `${percent(total.accepted / total.requests)} of requests; ${count(total.failed)} failed` : ""],
    ["Tokens", figure(short(total.prompt_tokens + total.completion_tokens)), `${short(total.prompt_tokens)} in, ${short(total.completion_tokens)} out`],
    ["Paid to suppliers", figure(total.paid_usd === null ? null : usd(total.paid_usd)), total.supplier_unknown ? `${count(total.supplier_unknown)} calls are unpriced` : "at list price"],
    ["Local machine", figure(total.local_unknown || !total.attempts ? null : usd(total.local_usd ?? 0)), total.local_unknown ? `${count(total.local_unknown)} tries have no cost yet` : "usage: its busy time"],
  ]);
}

function places(lines, total) {
  const rows = lines.map((line) => [
    line.name || "nobody", count(line.requests), percent(total.requests ? line.requests / total.requests : null), count(line.accepted),
    short(line.prompt_tokens), short(line.completion_tokens), usd(line.usd),
  ]);
  const columns = [["Answered by", "name"], ["Requests", "n"], ["Share", "n"], ["Accepted", "n"], ["Tokens in", "n"], ["Out", "n"], ["Cost", "n"]];
  byId("places").replaceChildren(table("Who answered", columns, rows, "Nothing was asked in this window."));
}

function users(lines, total) {
  const all = total.prompt_tokens + total.completion_tokens;
  const rows = lines.map((line) => {
    const tokens = line.prompt_tokens + line.completion_tokens;
    const key = el("span", {}, line.name || line.key_id || "no key", line.name ? el("small", {}, line.key_id) : null);
    return [key, count(line.requests), short(tokens), percent(all ? tokens / all : null), usd(line.usd), usd(line.usd_per_accepted), spark(line.trend)];
  });
  const columns = [["Key", "name"], ["Requests", "n"], ["Tokens", "n"], ["Share", "n"], ["Cost", "n"], ["Per accepted", "n"], ["Trend", ""]];
  byId("users").replaceChildren(table("Heavy users", columns, rows, "Nothing was asked in this window."));
}

function budgets(lines) {
  const rows = lines.map((line) => {
    const [limit, spent, held] = [line.limit_usd, line.spent_usd, line.held_usd];
    const whose = line.kind === "all" ? "everybody" : `${line.kind} ${line.label}`;
    const width = (part) => `${limit > 0 ? Math.min(100, (100 * part) / limit) : 100}%`;
    const [gone, kept] = [el("i"), el("i")];
    gone.style.width = width(spent);
    kept.style.width = width(Math.min(held, Math.max(0, limit - spent)));
    const meter = el("span", { class: spent + held >= limit ? "meter full" : "meter", "aria-hidden": "true" }, gone, kept);
    return [el("span", {}, whose, meter), line.period === "day" ? "a day (UTC)" : "in total", usd(limit), usd(spent), usd(held), usd(Math.max(0, limit - spent - held))];
  });
  const columns = [["Budget", "name"], ["Period", "t"], ["Limit", "n"], ["Spent", "n"], ["Reserved", "n"], ["Left", "n"]];
  byId("budgets").replaceChildren(table("Budgets", columns, rows, "No budget is set."));
}

function beside(found, total) {
  const facts = byId("beside");
  const note = byId("beside-note");
  facts.replaceChildren();
  note.textContent = "";
  if (!found) {
    note.textContent = "Name a supplier’s model, and the local answers’ tokens are priced as if it had given them.";
  } else if (!found.calls) {
    note.textContent = `No local answer was accepted in this window: nothing to set beside ${found.supplier}/${found.model}.`;
  } else if (found.usd === null) {
    note.textContent = `No price is known for ${found.supplier}/${found.model}.`;
  } else {
    const lines = [
      [`${found.supplier}/${found.model}`, `${usd(found.usd)} for ${count(found.calls)} local answers`],
      ["This machine", found.local_usd === null ? `${UNKNOWN}: ${count(total.local_unknown)} tries have no cost yet` : `${usd(found.local_usd)} (usage)`],
      ["Avoided", found.local_usd === null ? UNKNOWN : usd(found.usd - found.local_usd)],
      ["Margin", percent(found.margin)],
    ];
    facts.append(...lines.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
    note.textContent = `Assumed: that model would have taken as many tokens. Priced as calls of average length; ${found.source}.`;
  }
}
