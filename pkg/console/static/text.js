// Formats of numbers, times and states for readers.
import { h } from "./dom.js";

const grouped = new Intl.NumberFormat("en-GB");
const compact = new Intl.NumberFormat("en-GB", { notation: "compact", maximumFractionDigits: 1 });

export const count = (n) => grouped.format(n);
export const short = (n) => (n < 10000 ? grouped.format(n) : compact.format(n));
export const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many || one + "s"}`;

export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return "–";
  if (perSecond === 0) return "0";
  if (perSecond < 0.1) return "<0.1";
  return perSecond < 10 ? perSecond.toFixed(1) : short(Math.round(perSecond));
}

export function bytes(n) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (n < 1024 || unit === "GiB") return `${n < 10 && unit !== "B" ? n.toFixed(1) : Math.round(n)} ${unit}`;
    n /= 1024;
  }
}

export function duration(seconds) {
  if (seconds < 0.0005) return "0 s";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const m = Math.floor(seconds / 60);
  if (m < 60) return `${m} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(m / 60);
  if (hours < 48) return `${hours} h ${m % 60} min`;
  return `${Math.floor(hours / 24)} days`;
}

const ago = (t) => Math.max(0, (Date.now() - new Date(t).getTime()) / 1000);
export const age = (t) => duration(ago(t));

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });
const full = new Intl.DateTimeFormat("en-GB", { dateStyle: "full", timeStyle: "long" });

// time formats a time; of today, without the date.
export function time(t, long) {
  const at = new Date(t);
  const today = at.toDateString() === new Date().toDateString();
  return h("time", { datetime: t, title: full.format(at) }, today && !long ? clock.format(at) : day.format(at));
}

export const clockOf = (unix) => clock.format(new Date(unix * 1000));
export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;

const reasons = {
  too_large: "too large for the broker", no_destination: "no such destination", invalid: "invalid for the broker",
  unauthorized: "no permission for the destination", refused: "refused by the broker", expired: "not delivered within retry.dead_letter_after", max_attempts: "retry.max_attempts attempts failed", operator: "given up by an operator", malformed: "malformed for the source",
};
export const reason = (r) => reasons[r] || r.replaceAll("_", " ");

// Every state has a mark besides the colour, for readers who cannot see colours.
const states = {
  up: ["good", "✓", "up"], failing: ["warn", "!", "failing"], breaker_open: ["bad", "✕", "breaker open"],
  paused: ["held", "‖", "paused"], remote: ["good", "→", "another relay delivers"], unassigned: ["quiet", "·", "unassigned"],
  pending: ["quiet", "…", "pending"], delivered: ["good", "✓", "delivered"], filtered: ["quiet", "–", "filtered out"],
  skipped: ["quiet", "–", "skipped"], dead_letter: ["bad", "✕", "dead letter"], dropped: ["bad", "✕", "dropped"],
  redelivered: ["held", "↻", "redelivered"], discarded: ["bad", "✕", "discarded"],
  running: ["held", "▸", "running"], stopped: ["warn", "‖", "stopped"], done: ["good", "✓", "done"], failed: ["bad", "✕", "failed"], planned: ["quiet", "·", "planned"],
  success: ["good", "✓", "success"], failure: ["bad", "✕", "failure"],
};

export function state(name, words) {
  const [tone, mark, text] = states[name] || ["quiet", "·", name];
  return h("span", { className: `state ${tone}` }, h("span", { className: "mark", "aria-hidden": "true" }, mark), words || text);
}

// sinkState shows the state of a sink; of a failing sink with an open circuit breaker, the breaker.
export const sinkState = (s) => state(s.state === "failing" && s.breaker === "open" ? "breaker_open" : s.state);

// brief shortens the digest in an ID.
export const brief = (id) => id.replace(/(sha256:[0-9a-f]{8})[0-9a-f]{50,}([0-9a-f]{4})$/, "$1…$2");
