// What is asked for, and when: the present every 1.5 s, the rest now and then, and nothing while the page is hidden.

import { forgetKey, hasKey, keepKey, Refused } from "./api.js";
import * as books from "./books.js";
import * as details from "./details.js";
import { byId } from "./dom.js";
import * as now from "./now.js";
import * as requests from "./requests.js";

const NOW_MS = 1500;
const REQUESTS_MS = 5000;
const BOOKS_MS = 15_000;
let open = false; // the server lets us read

/** Calls `look` again and again: after `pause` ms, or the time that it answers with. Who calls the turn meanwhile gets one more.
 *  What goes wrong is told to `tell`. */
function every(pause, look, tell) {
  let timer;
  let running = false;
  let again = false;
  async function turn() {
    clearTimeout(timer);
    again = running;
    if (running) return;
    running = true;
    let next = pause;
    try {
      if (open && !document.hidden) next = (await look()) ?? pause;
    } catch (error) {
      trouble(error, tell);
    } finally {
      running = false;
      timer = setTimeout(turn, again ? 0 : next);
    }
  }
  return turn;
}

/** Puts words beside a heading. */
const note = (id) => (words) => {
  byId(id).textContent = words;
};

const turns = [
  every(NOW_MS, async () => void (await now.look()), now.lost),
  every(BOOKS_MS, async () => ((await books.look()) ? 300 : BOOKS_MS), note("books-note")),
  every(REQUESTS_MS, async () => void (await requests.look()), note("requests-note")),
];

function trouble(error, tell) {
  if (error instanceof Refused && (error.status === 401 || error.status === 403)) ask(error.message);
  else if (error instanceof Refused) tell(error.message);
  else throw error;
}

/** Ask for the key: nothing is shown or polled until there is one that opens. */
function ask(words) {
  open = false;
  byId("content").hidden = true;
  byId("forget").hidden = true;
  byId("key").hidden = false;
  now.lost(hasKey() ? words : "a key is needed");
  byId("key-field").focus();
}

async function enter() {
  try {
    await now.look();
  } catch (error) {
    trouble(error, now.lost);
    if (byId("key").hidden) setTimeout(enter, NOW_MS); // it may be there in a moment
    return;
  }
  open = true;
  byId("key").hidden = true;
  byId("content").hidden = false;
  byId("forget").hidden = !hasKey();
  setTimeout(turns[0], NOW_MS); // a rate over less says nothing
  turns.slice(1).forEach((turn) => turn());
}

now.begin();
books.begin();
details.begin();
requests.begin(turns[2]);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(byId("key-field").value.trim());
  byId("key-field").value = "";
  enter();
});
byId("forget").addEventListener("click", () => {
  forgetKey();
  location.reload();
});
byId("window").addEventListener("change", turns[1]);
byId("beside-form").addEventListener("submit", (event) => {
  event.preventDefault();
  turns[1]();
});
document.addEventListener("visibilitychange", () => !document.hidden && turns.forEach((turn) => turn()));
enter();
