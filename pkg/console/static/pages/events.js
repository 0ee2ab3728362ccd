// Search, and the live tail.
import { h, fill, say } from "../dom.js";
import * as api from "../api.js";
import { header, field, input, select, table } from "../parts.js";
import { brief, count, plural, rate, state, time } from "../text.js";

const names = ["id", "publish_id", "profile", "platform", "type", "outcome", "source", "from", "to", "filter"];
const kept = 200; // rows of the live tail
const maxRate = 25; // events a second that a person may still read

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
      field("Source", input("source", { value: value("source"), placeholder: "upload-post" }), "Its name in the configuration."),
      field("Accepted from", input("from", { value: value("from"), placeholder: "2h" }), "How long ago, or 2026-01-31T12:00:00Z."),
      field("Accepted before", input("to", { value: value("to"), placeholder: "now" })),
      field("Filter (CEL)", input("filter", { value: value("filter"), placeholder: 'mediatype == "video"' }))),
    h("div", { className: "actions" }, h("button", { type: "submit", className: "primary" }, "Search"), live));
  page.show(header("Events"), form, results);

  const query = () => Object.fromEntries(names.map((n) => [n, form.elements[n].value.trim()]).filter(([, v]) => v));
  let stop = null, looking = new AbortController();
  const look = () => {
    looking.abort(); // of two searches the later one counts
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
  { title: "Outcome" }, { title: "At the sinks" },
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
    // What was found before stays until there is something to put in its place.
    const said = results.querySelector("[role=status]");
    if (said) said.textContent = "Looking…";
    else fill(results, h("p", { className: "muted", role: "status" }, "Looking…"));
    results.setAttribute("aria-busy", "true");
    const answer = await api.get("/events", { ...query, before }, signal);
    results.removeAttribute("aria-busy");
    found = found.concat(answer.events);
    scanned += answer.scanned;
    fill(results,
      table({ caption: "Events, the newest first", columns, rows: found.map(row), empty: answer.next ? "None so far." : Object.keys(query).length ? "No event matches." : "No event is stored yet. It appears here as soon as a webhook is taken." }),
      h("div", { className: "more" },
        h("p", { className: "muted", role: "status" }, `${plural(found.length, "event")}; ${count(scanned)} were looked at`, answer.reached && answer.next ? [", back to ", time(answer.reached, true)] : ""),
        answer.next && h("button", { type: "button", id: "more", onclick: () => more(answer.next).catch(trouble) }, "Look further back")));
  };
  const trouble = (err) => {
    if (err.name === "AbortError") return;
    results.removeAttribute("aria-busy");
    if (err.status !== 401) fill(results, h("div", { className: "note bad", role: "alert" }, err.message));
  };
  await more().catch(trouble);
}

// filterOf returns one CEL expression for all fields of the form. A CEL string is
// written as a JSON string. The fields name attributes by index, which is allowed
// whatever the sources set.
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

// tail shows what comes, at a rate that a person can read, and counts the rest.
// It draws once a frame at most, however much comes.
function tail(results, query, still) {
  let rows = [], seen = 0, dropped = 0, drawing = false, recent = [];
  const shown = new Map();
  const status = h("p", { className: "muted tally", role: "status" }, "Connecting…");
  const body = h("tbody", { role: "rowgroup" });
  const shell = table({ caption: "Events as they come, the newest first", columns, rows: [{ cells: columns.map(() => "") }], empty: "" });
  shell.querySelector("tbody").replaceWith(body);
  results.replaceChildren(status, shell);
  const frame = () => {
    drawing = false;
    const now = Date.now();
    recent = recent.filter(([at]) => now - at < 5000);
    const perSecond = recent.reduce((n, [, k]) => n + k, 0) / 5;
    status.textContent = `${plural(seen, "event")} shown` + (dropped ? `, ${count(dropped)} more went by unshown: at most ${maxRate} a second are shown` : "") + ` · ${rate(perSecond)} a second`;
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
      if (status.isConnected) status.textContent = "The relay does not answer; trying again…";
    },
  });
  // A tail that is refused says nothing of why: a search does.
  if (query.filter) api.get("/events", { filter: query.filter, limit: 1 }).catch((err) => { still(); say(err.message, true); });
  return close;
}
