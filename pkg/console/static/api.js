// The admin API, as any script uses it; a browser shows its session's cookie
// and, where something changes, the token that other sites do not know.
const base = "/api/v1";

export const session = { role: "nobody", csrf: "", unlocked: false };
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
  Object.assign(session, { role: "nobody", csrf: "", unlocked: false, ends: null }, await now);
  return session;
}
export const whoAmI = () => take(call("GET", "/session"));
export const signIn = (token) => take(call("POST", "/session", { token }));
export const signOut = () => take(call("DELETE", "/session"));

// follow opens a tail; it is closed by what is returned.
export function follow(query, on) {
  const set = Object.entries(query).filter(([, v]) => v !== "" && v !== undefined);
  const source = new EventSource(`${base}/events/tail?${new URLSearchParams(set)}`);
  for (const [what, f] of Object.entries(on)) {
    if (what === "open" || what === "error") source.addEventListener(what, f);
    else source.addEventListener(what, (e) => f(JSON.parse(e.data)));
  }
  return () => source.close();
}
