// One dead letter, or one quarantined request.
import { h, say, ask } from "../dom.js";
import * as api from "../api.js";
import { header, facts, note } from "../parts.js";
import { bytes, count, reason, time } from "../text.js";

export default async function entry(page) {
  const id = page.what;
  let shown = false;
  const load = async () => {
    const e = await api.get(`/dlq/${api.name(id)}`, { data: shown }, page.gone);
    const quarantine = e.kind === "quarantine";
    page.show(
      header(h("span", { className: "id" }, e.event_id || e.id), h("p", { className: "aside" }, h("a", { href: "#/dlq" }, "Dead letters and quarantine"), quarantine ? ` · request to ${e.source}` : ` · for ${e.sink}`)),
      note("bad", h("strong", null, reason(e.reason)), h("p", null, e.error)),
      facts([
        [quarantine ? "Source" : "Sink", e.sink || e.source], quarantine ? ["Received", e.count === 1 ? "once" : `${count(e.count)} times`] : ["Attempts", count(e.attempts)], ["First", time(e.first, true)], ["Last", time(e.last, true)], ["Type", e.event_type],
        ["Size", bytes(e.bytes)], e.seq && ["Event", h("a", { href: `#/event/${e.seq}` }, `sequence ${count(e.seq)}`)],
        e.request && e.request.method && ["Request", h("code", null, `${e.request.method} ${e.request.path || ""}`)],
      ]),
      api.operator() && h("div", { className: "actions" },
        h("button", { type: "button", "data-act": "retry", className: "primary", onclick: () => act("retry") }, "Retry"),
        h("button", { type: "button", "data-act": "drop", className: "danger", onclick: () => act("drop") }, "Drop")),
      h("section", { "aria-labelledby": "content" }, h("h2", { id: "content" }, "Content"),
        api.operator()
          ? [h("p", { className: "muted" }, "The content may be personal data, such as an address or a caption."),
            h("button", { type: "button", id: "content-toggle", "aria-expanded": String(shown), onclick: () => { shown = !shown; load().catch((err) => say(err.message, true)); } }, shown ? "Hide the content" : "Show the content")]
          : h("p", { className: "muted" }, "The content may be personal data: only operators can see the content."),
        shown && h("pre", { tabindex: "0", "aria-label": "Content" }, text(e))));
  };
  const act = async (what) => {
    const done = await ask({
      title: what === "retry" ? "Retry this entry?" : "Drop this entry?", confirm: what === "retry" ? "Retry" : "Drop permanently", dangerous: what === "drop",
      body: h("p", null, what === "retry" ? "A dead letter is delivered to its sink again; a quarantined request is converted again by its source." : "The entry is removed permanently, and no sink gets the event."),
      act: () => (what === "retry" ? api.post(`/dlq/${api.name(id)}/retry`) : api.remove(`/dlq/${api.name(id)}`)),
    });
    if (done) { say(what === "retry" ? "The entry is retried." : "The entry is dropped."); location.hash = "#/dlq"; }
  };
  await load();
}

function text(e) {
  if (e.request) {
    const { header: headers, body, body_base64: binary, raw_query: query } = e.request;
    const lines = Object.entries(headers || {}).flatMap(([name, values]) => values.map((v) => `${name}: ${v}`));
    return [query ? `?${query}` : null, ...lines, "", body || binary || ""].filter((l) => l !== null).join("\n");
  }
  const data = e.event && e.event.data;
  return data === undefined ? "(empty)" : JSON.stringify(data, null, 2);
}
