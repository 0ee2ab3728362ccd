// The admin API, as any script uses it; a browser shows its session's cookie
// and, where something changes, the token that other sites do not know.
const base = "/api/v1";

export const session = { role: "nobody", name: "", csrf: "", unlocked: false };
export const operator = () => session.role === "operator";

let signedOut = () => {};
export function onSignedOut(f) { signedOut = f; }

export class Refused extends Error {
  constructor(status, text) { super(text); this.status = status; }
}

// exact reads JSON whose numbers are shown as they were sent; they are not to be
// calculated with. A browser without JSON.rawJSON rounds them to doubles.
const exact = (text) => (JSON.rawJSON ? JSON.parse(text, (_, v, at) => (typeof v === "number" ? JSON.rawJSON(at.source) : v)) : JSON.parse(text));

// withData gives an event the data as it was sent.
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
  try { value = text ? withData(JSON.parse(text), text) : null; } catch { /* it is said below */ }
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

async function take(now) {
  Object.assign(session, { role: "nobody", name: "", csrf: "", unlocked: false, ends: null }, await now);
  return session;
}
export const whoAmI = () => take(call("GET", "/session"));
export const signIn = (token) => take(call("POST", "/session", { token }));
export const signOut = () => take(call("DELETE", "/session"));

const firstWait = 1000, longestWait = 8000; // milliseconds until a tail that was cut off is opened again

// follow opens a tail, and opens it again where it was when its connection ends: for
// its age, because the relay stops, or for a fault on the way. No event is left out or
// shown twice. The tail is closed by what is returned.
export function follow(query, on) {
  const set = Object.entries(query).filter(([, v]) => v !== "" && v !== undefined);
  let source = null, next = 0, timer = 0, wait = firstWait, closed = false;
  const again = (after) => {
    source.close();
    if (!closed) timer = setTimeout(open, after);
  };
  const heard = {
    event: (m) => { next = m.seq + 1; },
    heartbeat: (m) => { next = m.next; },
    end: (m) => { next = m.next; again(m.reason === "connection_age" ? 0 : wait); },
  };
  function open() {
    const at = next ? [...set.filter(([k]) => k !== "from"), ["seq", next]] : set;
    source = new EventSource(`${base}/events/tail?${new URLSearchParams(at)}`);
    for (const what of new Set([...Object.keys(heard), ...Object.keys(on)])) {
      if (what === "error") continue;
      source.addEventListener(what, (e) => {
        const m = JSON.parse(e.data);
        wait = firstWait;
        if (on[what]) on[what](m);
        if (heard[what]) heard[what](m);
      });
    }
    source.addEventListener("error", async () => {
      const refused = source.readyState === EventSource.CLOSED;
      again(wait);
      wait = Math.min(2 * wait, longestWait);
      if (on.error) on.error();
      // Why a tail is refused is not told: it may be that the session has ended.
      if (refused && !closed) await call("GET", "/session").then((s) => { if (s.role === "nobody") signedOut(); }, () => {});
    });
  }
  open();
  return () => { closed = true; clearTimeout(timer); source.close(); };
}
