// Search, and live tail.
import { h, fill, say } from "../dom.js";
import * as api from "../api.js";
import { header, field, input, select, table } from "../parts.js";
import { brief, count, plural, rate, state, time } from "../text.js";

const names = ["id", "publish_id", "profile", "platform", "type", "outcome", "source", "from", "to", "filter"];
const kept = 200; // rows of the live tail
const maxRate = 25; // events per second in the live tail, for readability

export default async function events(page) {
  const value = (name) => page.query.get(name) || "";
  const results = h("div", { id: "results", "data-kept": "" });
  const live = h("button", { type: "button", id: "live", "aria-pressed": "false" }, "Follow live");
  const form = h("form", { className: "filter", role: "search", "aria-label": "Events", "data-kept": "" },
    h("div", { className: "fields" },
      field("Event id contains", input("id", { value: value("id") })),
      field("Publish id", input("publish_id", { value: value("publish_id") })),
      field("Profile", input("profile", { value: value("profile") })),
      field("Platform", input("platform", { value: value("platform"), placeholder: "instagram" })),
      field("Type", input("type", { value: value("type"), placeholder: "upload_completed" })),
      field("Outcome", select("outcome", [["", "any"], ["success", "success"], ["failure", "failure"], ["connected", "connected"], ["disconnected", "disconnected"], ["reauth_required", "reauth_required"]], value("outcome"))),
      field("Source", input("source", { value: value("source"), placeholder: "upload-post" }), "Name in the configuration."),
      field("Accepted from", input("from", { value: value("from"), placeholder: "2h" }), "Age such as 2h, or a time such as 2026-01-31T12:00:00Z."),
      field("Accepted before", input("to", { value: value("to"), placeholder: "now" })),
      field("Filter (CEL)", input("filter", { value: value("filter"), placeholder: 'mediatype == "video"' }))),
    h("div", { className: "actions" }, h("button", { type: "submit", className: "primary" }, "Search"), live));
  page.show(header("Events"), form, results);

  const query = () => Object.fromEntries(names.map((n) => [n, form.elements[n].value.trim()]).filter(([, v]) => v));
  let stop = null, looking = new AbortController();
  const look = () => {
    looking.abort(); // a new search cancels the previous search
    looking = new AbortController();
    return search(AbortSignal.any([page.gone, looking.signal]), results, query());
  };
  const still = () => {
    if (stop) stop();
    stop = null;
    live.setAttribute("aria-pressed", "false");
    live.textContent = "Follow live";
  };
  page.gone.addEventListener("abort", still);
  form.onsubmit = (e) => {
    e.preventDefault();
    still();
    history.replaceState(null, "", `#/events?${new URLSearchParams(query())}`);
    look();
  };
  live.onclick = () => {
    if (stop) { still(); return; }
    live.setAttribute("aria-pressed", "true");
    live.textContent = "Stop following";
    looking.abort();
    stop = tail(results, query(), still);
  };
  await look();
}

const columns = [
  { title: "Accepted" }, { title: "Event" }, { title: "Profile", className: "wide" }, { title: "Platform", className: "wide" },
  { title: "Outcome" }, { title: "Delivery status" },
];

const short = (type) => type.replace(/^com\.upload-post\./, "");

function row(s) {
  const e = s.event;
  return {
    key: String(s.seq),
    cells: [
      time(s.accepted),
      [h("a", { href: `#/event/${s.seq}`, className: "id", title: e.id }, brief(e.id)), h("span", { className: "under" }, short(e.type), s.target_sink && ` · redelivered to ${s.target_sink}`)],
      e.profile || "–", e.platform || "–",
      e.outcome ? state(e.outcome) : "–",
      h("span", { className: "deliveries" }, s.deliveries.map((f) => h("span", { className: "delivery", "data-key": f.sink }, h("span", { className: "unseen" }, `${f.sink}: `), h("span", { "aria-hidden": "true", className: "sink" }, f.sink), state(f.state)))),
    ],
  };
}

async function search(signal, results, query) {
  let found = [], scanned = 0;
  const more = async (before) => {
    // Keep the previous results until the new results arrive.
    const status = results.querySelector("[role=status]");
    if (status) status.textContent = "Searching…";
    else fill(results, h("p", { className: "muted", role: "status" }, "Searching…"));
    results.setAttribute("aria-busy", "true");
    const answer = await api.get("/events", { ...query, before }, signal);
    results.removeAttribute("aria-busy");
    found = found.concat(answer.events);
    scanned += answer.scanned;
    fill(results,
      table({ caption: "Events, the newest first", columns, rows: found.map(row), empty: answer.next ? "No match so far." : Object.keys(query).length ? "No event matches." : "No event is stored yet. Events appear here when the relay accepts a webhook." }),
      h("div", { className: "more" },
        h("p", { className: "muted", role: "status" }, `${plural(found.length, "event")}; ${count(scanned)} examined`, answer.reached && answer.next ? [", back to ", time(answer.reached, true)] : ""),
        answer.next && h("button", { type: "button", id: "more", onclick: () => more(answer.next).catch(trouble) }, "Look further back")));
  };
  const trouble = (err) => {
    if (err.name === "AbortError") return;
    results.removeAttribute("aria-busy");
    if (err.status !== 401) fill(results, h("div", { className: "note bad", role: "alert" }, err.message));
  };
  await more().catch(trouble);
}

// filterOf returns one CEL expression for all fields of the form. A JSON string is a
// valid CEL string. attributes.NAME is valid for every name, even if no source sets
// the attribute.
function filterOf(query) {
  const text = JSON.stringify;
  const parts = [];
  if (query.id) parts.push(`id.contains(${text(query.id)})`);
  if (query.type) parts.push(`(type == ${text(query.type)} || type.endsWith(${text(`.${query.type}`)}))`);
  for (const [field, attribute] of [["publish_id", "publishid"], ["profile", "profile"], ["platform", "platform"], ["outcome", "outcome"]]) {
    if (query[field]) parts.push(`attributes.${attribute} == ${text(query[field])}`);
  }
  if (query.filter) parts.push(`(${query.filter})`);
  return parts.join(" && ");
}

// tail shows new events, up to maxRate per second, and counts the remaining events.
// The page is drawn at most once per animation frame.
function tail(results, query, still) {
  let rows = [], seen = 0, dropped = 0, drawing = false, recent = [];
  const shown = new Map();
  const status = h("p", { className: "muted tally", role: "status" }, "Connecting…");
  const body = h("tbody", { role: "rowgroup" });
  const shell = table({ caption: "Live events, the newest first", columns, rows: [{ cells: columns.map(() => "") }], empty: "" });
  shell.querySelector("tbody").replaceWith(body);
  results.replaceChildren(status, shell);
  const frame = () => {
    drawing = false;
    const now = Date.now();
    recent = recent.filter(([at]) => now - at < 5000);
    const perSecond = recent.reduce((n, [, k]) => n + k, 0) / 5;
    status.textContent = `${plural(seen, "event")} shown` + (dropped ? `, ${count(dropped)} not shown (maximum ${maxRate} per second)` : "") + ` · ${rate(perSecond)} per second`;
    status.dataset.seen = seen;
    status.dataset.dropped = dropped;
    for (const s of rows) {
      const made = table({ caption: "", columns, rows: [row(s)], empty: "" }).querySelector("tbody tr");
      body.prepend(made);
      shown.set(s.seq, s);
    }
    rows = [];
    while (body.childElementCount > kept) {
      shown.delete(Number(body.lastElementChild.getAttribute("data-key")));
      body.lastElementChild.remove();
    }
  };
  const draw = () => { if (!drawing) { drawing = true; requestAnimationFrame(frame); } };
  const close = api.follow({ filter: filterOf(query), source: query.source, max_rate: maxRate }, {
    event: (s) => { seen++; recent.push([Date.now(), 1]); rows.push(s); if (rows.length > kept) rows.shift(); draw(); },
    dropped: (m) => { dropped += m.events; recent.push([Date.now(), m.events]); draw(); },
    status: (f) => {
      const s = shown.get(f.seq) || rows.find((r) => r.seq === f.seq);
      if (!s) return;
      s.deliveries = s.deliveries.map((was) => (was.sink === f.sink ? f : was));
      const old = body.querySelector(`[data-key="${f.seq}"]`);
      if (old) old.lastElementChild.firstElementChild.replaceChildren(row(s).cells[5]);
    },
    heartbeat: () => { if (!seen) status.textContent = "Waiting for the next event…"; },
    error: () => {
      if (status.isConnected) status.textContent = "The relay does not answer; retrying…";
    },
  });
  // EventSource does not report why a tail is refused. A search with the filter reports the error.
  if (query.filter) api.get("/events", { filter: query.filter, limit: 1 }).catch((err) => { still(); say(err.message, true); });
  return close;
}
