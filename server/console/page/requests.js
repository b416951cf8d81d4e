// The latest requests, a page at a time. Rows that stay are left alone, so that focus and selection survive a refresh.

import { data } from "./api.js";
import { byId, el, table } from "./dom.js";
import { count, moment, seconds, usd, UNKNOWN } from "./format.js";
import { open } from "./details.js";

const PAGE = 50;
const COLUMNS = [
  ["Time", "t"], ["Asked for", "name"], ["Answered by", "name"], ["Status", "t"], ["Tokens in", "n"], ["Out", "n"], ["First token", "n"], ["Took", "n"], ["Cost", "n"], ["Why there", "wide"], ["", ""],
];
let before = ""; // the end of the page before, empty: the newest
let rows = new Map();

/** Ask and draw. */
export async function look() {
  const asked = { status: byId("status").value, before };
  const { requests } = await data("requests", asked);
  if (asked.before !== before || asked.status !== byId("status").value) return; // another page was asked for meanwhile
  byId("newest").disabled = before === "";
  byId("older").disabled = requests.length < PAGE;
  byId("older").dataset.last = requests.length ? `${requests.at(-1).ts},${requests.at(-1).id}` : "";
  const words = requests.length ? "" : "There are none.";
  if (byId("requests-note").textContent !== words) byId("requests-note").textContent = words;
  draw(requests);
}

function draw(requests) {
  const place = byId("requests");
  if (!requests.length) {
    rows = new Map();
    place.replaceChildren();
    return;
  }
  if (!place.querySelector("tbody")) place.replaceChildren(table("The latest requests", COLUMNS, [COLUMNS.map(() => "")], ""));
  const body = place.querySelector("tbody");
  const kept = new Map();
  for (const one of requests) {
    const state = JSON.stringify(one);
    const known = rows.get(one.id);
    kept.set(one.id, known?.state === state ? known : { state, row: row(one) });
  }
  rows = kept;
  const wanted = [...kept.values()].map((entry) => entry.row);
  const stays = new Set(wanted);
  for (const old of [...body.children]) if (!stays.has(old)) old.remove();
  wanted.forEach((line, n) => body.children[n] !== line && body.insertBefore(line, body.children[n] ?? null));
}

function row(one) {
  const took = one.finished_ts === null ? null : one.finished_ts - one.ts;
  const running = one.status === "running";
  const cells = [
    el("time", { datetime: new Date(one.ts * 1000).toISOString() }, moment(one.ts)), one.job ? `${one.model_asked} (${one.job})` : one.model_asked,
    one.answered === null ? (running ? "–" : "nobody") : one.route, el("span", { class: `badge ${KNOWN.has(one.status) ? one.status : ""}` }, one.error_code ? `${one.status}: ${one.error_code}` : one.status),
    tokens(one.prompt_tokens), tokens(one.completion_tokens), running || one.first_token_s === null ? "–" : seconds(one.first_token_s), running || took === null ? "–" : seconds(Math.max(0, took)),
    cost(one), one.why, el("button", { type: "button", class: "link", "aria-label": `Details of ${one.id}`, click: () => open(one.id) }, "Details"),
  ];
  return el("tr", {}, ...cells.map((cell, n) => (n ? el("td", { class: COLUMNS[n][1] }, cell) : el("th", { scope: "row", class: COLUMNS[n][1] }, cell))));
}

const KNOWN = new Set(["running", "done", "failed", "cancelled", "interrupted"]);
const tokens = (value) => (value === null ? "–" : count(value));

/** What is known of it: a supplier's part may be, where the local machine's is not. */
function cost({ attempts, status, supplier_usd: paid, local_usd: local }) {
  if (!attempts || status === "running") return "–";
  if (paid === null) return UNKNOWN;
  if (local === null) return paid ? `${usd(paid)} + local` : UNKNOWN;
  return usd(paid + local);
}

export function begin(refresh) {
  const go = (to) => {
    before = to;
    refresh();
  };
  byId("status").addEventListener("change", () => go(""));
  byId("newest").addEventListener("click", () => go(""));
  byId("older").addEventListener("click", () => go(byId("older").dataset.last));
}
