// Client of the admin API. The browser sends the session cookie; a request that
// changes something also carries the CSRF token, unknown to other sites.
const base = "/api/v1";

export const session = { role: "nobody", name: "", csrf: "", unlocked: false };
export const operator = () => session.role === "operator";

let signedOut = () => {};
export function onSignedOut(f) { signedOut = f; }

export class Refused extends Error {
  constructor(status, text) { super(text); this.status = status; }
}

// exact parses JSON and keeps the digits of numbers, for display only, not for
// arithmetic. A browser without JSON.rawJSON rounds numbers to doubles.
const exact = (text) => (JSON.rawJSON ? JSON.parse(text, (_, v, at) => (typeof v === "number" ? JSON.rawJSON(at.source) : v)) : JSON.parse(text));

// withData replaces the data of an event by the data with the digits as sent.
function withData(value, text) {
  if (value && value.event && value.event.data !== undefined) value.event.data = exact(text).event.data;
  return value;
}

async function call(method, path, body, signal) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (method !== "GET" && session.csrf) headers["X-CSRF-Token"] = session.csrf;
  let answer;
  try {
    answer = await fetch(base + path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal, credentials: "same-origin" });
  } catch (err) {
    if (err.name === "AbortError") throw err;
    throw new Refused(0, "The relay does not answer.");
  }
  const text = await answer.text();
  let value = null;
  try { value = text ? withData(JSON.parse(text), text) : null; } catch { /* not JSON; reported below */ }
  if (answer.ok) return value;
  if (answer.status === 401 && path !== "/session") signedOut();
  const details = ((value && value.errors) || []).map((e) => e.message);
  throw new Refused(answer.status, [(value && value.detail) || `The relay answered ${answer.status}.`, ...details].join(" "));
}

export const get = (path, query, signal) => {
  const set = Object.entries(query || {}).filter(([, v]) => v !== "" && v !== undefined && v !== null);
  return call("GET", set.length ? `${path}?${new URLSearchParams(set)}` : path, undefined, signal);
};
export const post = (path, body) => call("POST", path, body);
export const put = (path, body) => call("PUT", path, body);
export const remove = (path) => call("DELETE", path);

export const name = (id) => encodeURIComponent(id);

async function setSession(answer) {
  Object.assign(session, { role: "nobody", name: "", csrf: "", unlocked: false, ends: null }, await answer);
  return session;
}
export const whoAmI = () => setSession(call("GET", "/session"));
export const signIn = (token) => setSession(call("POST", "/session", { token }));
export const signOut = () => setSession(call("DELETE", "/session"));

const firstWait = 1000, longestWait = 8000; // milliseconds between connections of a tail

// follow opens a tail, and reconnects at the next sequence when the connection ends: at
// the maximum age, because the relay stops, or after a network failure. No event is
// missed or shown twice. The returned function closes the tail.
export function follow(query, on) {
  const set = Object.entries(query).filter(([, v]) => v !== "" && v !== undefined);
  let source = null, next = 0, timer = 0, wait = firstWait, closed = false;
  const reconnect = (after) => {
    source.close();
    if (!closed) timer = setTimeout(open, after);
  };
  const position = {
    event: (m) => { next = m.seq + 1; },
    heartbeat: (m) => { next = m.next; },
    end: (m) => { next = m.next; reconnect(m.reason === "connection_age" ? 0 : wait); },
  };
  function open() {
    const at = next ? [...set.filter(([k]) => k !== "from"), ["seq", next]] : set;
    source = new EventSource(`${base}/events/tail?${new URLSearchParams(at)}`);
    for (const type of new Set([...Object.keys(position), ...Object.keys(on)])) {
      if (type === "error") continue;
      source.addEventListener(type, (e) => {
        const m = JSON.parse(e.data);
        wait = firstWait;
        if (on[type]) on[type](m);
        if (position[type]) position[type](m);
      });
    }
    source.addEventListener("error", async () => {
      const refused = source.readyState === EventSource.CLOSED;
      reconnect(wait);
      wait = Math.min(2 * wait, longestWait);
      if (on.error) on.error();
      // EventSource does not report the reason of a refusal. Check whether the session has ended.
      if (refused && !closed) await call("GET", "/session").then((s) => { if (s.role === "nobody") signedOut(); }, () => {});
    });
  }
  open();
  return () => { closed = true; clearTimeout(timer); source.close(); };
}
