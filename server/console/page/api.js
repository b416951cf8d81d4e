// Asking the server. The key, where one is needed, lives in this tab's session and goes out in a header.

const KEY = "baseload.key";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));
export const keepKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

/** JSON of /console/data/<path>. Throws Refused with the server's words; its status is 0 where the server cannot be reached. */
export async function data(path, query = {}) {
  const chosen = new URLSearchParams(Object.entries(query).filter(([, value]) => value));
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const answer = await fetch(`/console/data/${path}?${chosen}`, { headers, credentials: "omit", cache: "no-store" }).catch(() => null);
  if (!answer) throw new Refused(0, "the server does not answer");
  const body = await answer.json().catch(() => null);
  if (!answer.ok) throw new Refused(answer.status, body?.error?.message ?? `The server answered ${answer.status}.`);
  return body;
}
