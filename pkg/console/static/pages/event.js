// One event: attributes, source, and delivery status at every sink.
import { h, say, ask } from "../dom.js";
import * as api from "../api.js";
import { header, facts, poll, table } from "../parts.js";
import { bytes, count, duration, reason, state, time } from "../text.js";

const titles = {
  source: "Source", subject: "Subject", type: "Type", time: "Event time", profile: "Profile", platform: "Platform", mediatype: "Media",
  outcome: "Outcome", publishid: "Publish id", correlationid: "Job", deliveryid: "Delivery", recordedtime: "Recorded", traceparent: "Trace",
  partitionkey: "Partition key", dataschema: "Schema", datacontenttype: "Content type", specversion: "CloudEvents", id: "Id",
};

export default async function event(page) {
  let shown = false;
  const refresh = async () => {
    const s = await api.get(`/events/${api.name(page.what)}`, { data: shown }, page.gone);
    page.show(...draw(s, shown, () => { shown = !shown; return refresh().catch((err) => say(err.message, true)); }, refresh));
  };
  await refresh();
  poll(page, 5000, () => refresh().catch(() => {}));
}

// when formats the delivery time, exact or as a range.
function when(f) {
  if (f.at) return time(f.at, true);
  if (f.after && new Date(f.before) - new Date(f.after) <= 1000) return ["about ", time(f.before, true)];
  if (f.after) return ["between ", time(f.after, true), " and ", time(f.before, true)];
  if (f.before) return ["before ", time(f.before, true)];
  if (f.state === "delivered") return "time unknown on this relay";
  return "–";
}

function after(f, s) {
  if (!f.at || f.state !== "delivered") return "–";
  return duration(Math.max(0, (new Date(f.at) - new Date(s.accepted)) / 1000));
}

function why(f) {
  const parts = [];
  if (f.reason) parts.push(h("span", null, reason(f.reason)));
  if (f.error) parts.push(h("span", { className: "under" }, f.error));
  if (f.redelivered_as) parts.push(h("a", { href: `#/event/${f.redelivered_as}` }, `redelivered as event ${f.redelivered_as}`));
  return parts.length ? parts : "–";
}

function draw(s, shown, toggle, refresh) {
  const { data, data_base64: binary, ...attributes } = s.event;
  const order = Object.keys(titles);
  const rank = (n) => (order.includes(n) ? order.indexOf(n) : order.length);
  const known = Object.entries(attributes).sort(([a], [b]) => rank(a) - rank(b));
  return [
    header(h("span", { className: "id" }, attributes.id), h("p", { className: "aside" }, h("a", { href: "#/events" }, "Events"), ` · sequence ${count(s.seq)}`)),
    h("section", { "aria-labelledby": "deliveries" }, h("h2", { id: "deliveries" }, "Delivery status"),
      table({
        caption: "Delivery status of the event at each sink", empty: "No sink is configured.",
        columns: [{ title: "Sink" }, { title: "State" }, { title: "Delivered" }, { title: "Latency", number: true }, { title: "Attempts", number: true }, { title: "Reason" }, { title: "Send again", unseen: true }],
        rows: s.deliveries.map((f) => ({
          key: f.sink,
          cells: [
            h("a", { href: "#/sinks" }, f.sink), state(f.state), when(f), after(f, s), f.attempts ? count(f.attempts) : "–", why(f),
            h("span", { className: "actions" },
              f.state === "dead_letter" && h("a", { href: `#/entry/${api.name(`${s.seq}@${f.sink}`)}` }, "Show dead letter"),
              api.operator() && ["delivered", "dropped", "discarded", "skipped", "dead_letter"].includes(f.state) && h("button", { type: "button", className: "small", "data-sink": f.sink, onclick: () => resend(s, f.sink, refresh) }, "Send again", h("span", { className: "unseen" }, ` to ${f.sink}`))),
          ],
        })),
      })),
    h("section", { "aria-labelledby": "what" }, h("h2", { id: "what" }, "The event"),
      facts([["Accepted", time(s.accepted, true)], ["Received by", s.source ? h("a", { href: "#/sources" }, s.source) : "unknown source"], ["Size", bytes(s.bytes)], s.origin_seq && ["Redelivery of", h("a", { href: `#/event/${s.origin_seq}` }, `event ${s.origin_seq}`)], s.target_sink && ["Redelivered to", s.target_sink],
        ...known.map(([name, value]) => [titles[name] || name, /time$/.test(name) ? time(value, true) : h("span", { className: "id" }, String(value))])])),
    h("section", { "aria-labelledby": "content" }, h("h2", { id: "content" }, "Content"),
      api.operator()
        ? [h("p", { className: "muted" }, "The content may be personal data, such as an address or a caption."),
          h("button", { type: "button", id: "content-toggle", "aria-expanded": String(shown), "aria-controls": "data", onclick: toggle }, shown ? "Hide the content" : "Show the content")]
        : h("p", { className: "muted" }, "The content may be personal data: only operators can see the content."),
      shown && h("pre", { id: "data", tabindex: "0", "aria-label": "Content of the event" }, data !== undefined ? JSON.stringify(data, null, 2) : binary || "(empty)")),
  ];
}

async function resend(s, sink, refresh) {
  const done = await ask({
    title: `Send this event to ${sink} again?`, confirm: "Send again",
    body: h("p", null, `A replay delivers this event to ${sink} again. Consumers get a second event with the same id.`),
    act: () => api.post(`/events/${s.seq}/send`, { sink }),
  });
  if (done) { say(`The replay to ${sink} has started; the page Replay shows the progress.`); refresh().catch(() => {}); }
}
