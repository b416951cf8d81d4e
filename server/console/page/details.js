// One request: what was asked, why it ran where it ran, each try and its verdicts, and what left the machine.

import { data } from "./api.js";
import { byId, el, table } from "./dom.js";
import { count, exactTime, dayOf, joules, seconds, usd } from "./format.js";

/** Show a request in the dialog. */
export async function open(id) {
  const body = byId("details-body");
  byId("details-title").textContent = "Request";
  body.replaceChildren(el("p", { class: "note" }, "reading"));
  byId("details").showModal();
  try {
    body.replaceChildren(...shown(await data(`requests/${encodeURIComponent(id)}`)));
  } catch (error) {
    body.replaceChildren(el("p", { role: "alert" }, error.message));
  }
}

export function begin() {
  byId("close").addEventListener("click", () => byId("details").close());
  byId("details").addEventListener("click", (event) => event.target === byId("details") && byId("details").close());
}

function shown(found) {
  return [facts(found), ...section("Why it ran there", reasons(found.decision ?? {})), ...section("Tries", tries(found)), ...section("Verdicts", verdicts(found)), ...section("What left this machine", left(found))];
}

function section(title, content) {
  return [el("h3", {}, title), content];
}

function facts(found) {
  const took = found.finished_ts === null ? "" : ` in ${seconds(Math.max(0, found.finished_ts - found.ts))}`;
  const lines = [
    ["Id", el("code", {}, found.id)], ["Time", `${dayOf(found.ts)} ${exactTime(found.ts)}`], ["Asked for", `${found.model_asked}, over ${found.protocol}${found.stream ? ", streamed" : ""}`],
    ["Status", `${found.status}${took}${found.error_code ? `: ${found.error_code}` : ""}`], ["Answered by", found.route || "nobody"],
    ["Job", found.job], ["Task class", found.task_class], ["Data class", found.data_class], ["Key", found.key_id], ["May cost", found.budget_usd === null ? null : usd(found.budget_usd)],
  ];
  return el("dl", { class: "facts" }, ...lines.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

const digits = (value) => Number(value).toPrecision(4).replace(/\.?0+$/, "");

function reasons({ mode, rungs = [], notes = [], checks = [], buffered }) {
  const lines = [
    mode ? (mode === "auto" ? "The client left the choice to the router." : `The client named the place (${mode}).`) : null,
    ...rungs.map((rung) => (rung.allowed ? `${rung.name}: allowed` : `${rung.name}: denied by the gate ${rung.gate}: ${rung.reason}`)),
    ...notes.map((note) => {
      const numbers = Object.entries(note.numbers ?? {}).map(([name, value]) => `${name} ${digits(value)}`);
      return `${note.by}: ${note.why}${numbers.length ? ` (${numbers.join(", ")})` : ""}`;
    }),
    checks.length ? `Checks: ${checks.join(", ")}${buffered ? "; the answer was held back until the verdict" : ""}` : null,
  ].filter(Boolean);
  return lines.length ? el("ol", {}, ...lines.map((line) => el("li", {}, line))) : el("p", { class: "note" }, "Nothing was written down of it.");
}

function tries({ attempts }) {
  const rows = attempts.map((one) => [
    `${one.n + 1}`, `${one.backend} ${one.model}`, one.role, one.accepted ? "accepted" : "not accepted", one.error ?? one.finish_reason ?? "–",
    count(one.prompt_tokens), count(one.cached_tokens), count(one.completion_tokens), one.first_token_s === null ? "–" : seconds(one.first_token_s), one.duration_s === null ? "–" : seconds(one.duration_s),
    usd(one.backend === "local" ? one.internal_usd : one.retail_usd), joules(one.energy_joules),
  ]);
  const columns = [["Try", "n"], ["Model", "name"], ["Role", "t"], ["", "t"], ["End", "name"], ["Tokens in", "n"], ["Cached", "n"], ["Out", "n"], ["First token", "n"], ["Took", "n"], ["Cost", "n"], ["Energy", "n"]];
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Tries" }, table("Tries", columns, rows, "Nothing was tried."));
}

function verdicts({ outcomes, attempts }) {
  const number = new Map(attempts.map((one) => [one.id, one.n + 1]));
  const said = (one) => (one.pending ? "still to come" : one.passed === null ? "no verdict" : one.passed ? "passed" : "failed");
  const lines = outcomes.map((one) => {
    const words = one.evidence || one.comment;
    const score = one.score === null ? "" : ` ${digits(one.score)}`;
    return `Try ${number.get(one.attempt_id) ?? "–"}, ${one.check || one.source}: ${said(one)}${score}${words ? `: ${words}` : ""}`;
  });
  return lines.length ? el("ol", {}, ...lines.map((line) => el("li", {}, line))) : el("p", { class: "note" }, "Nobody judged it.");
}

function left({ egress }) {
  const lines = egress.map((one) => `${exactTime(one.ts)} ${one.host}:${one.port}, ${one.purpose}: ${one.allowed ? "allowed" : "refused"}${one.reason ? ` (${one.reason})` : ""}`);
  return lines.length ? el("ol", {}, ...lines.map((line) => el("li", {}, line))) : el("p", { class: "note" }, "Nothing.");
}
