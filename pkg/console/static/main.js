// Entry point of the console: sign-in, and the page for the URL fragment.
import { h, fill, say } from "./dom.js";
import * as api from "./api.js";
import { time, zone } from "./text.js";
import { header, note } from "./parts.js";
import overview from "./pages/overview.js";
import events from "./pages/events.js";
import event from "./pages/event.js";
import sinks from "./pages/sinks.js";
import deadLetters from "./pages/deadletters.js";
import entry from "./pages/entry.js";
import replays from "./pages/replays.js";
import sources from "./pages/sources.js";
import configuration from "./pages/configuration.js";

const pages = [
  ["overview", "Overview", overview],
  ["events", "Events", events],
  ["sinks", "Sinks", sinks],
  ["dlq", "Dead letters", deadLetters],
  ["replays", "Replay", replays],
  ["sources", "Sources", sources],
  ["configuration", "Configuration", configuration],
];
const within = { event: ["events", "Event", event], entry: ["dlq", "Dead letter", entry] };

const app = document.getElementById("app");
let leave = new AbortController();

// route parses the URL fragment: #/name/what?query.
function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...what] = path.split("/");
  return { name: name || "overview", what: what.map(decodeURIComponent).join("/"), query: new URLSearchParams(query || "") };
}

function frame(current) {
  const s = api.session;
  return [
    h("header", { className: "bar" },
      h("a", { className: "brand", href: "#/overview" }, h("svg", { viewBox: "0 0 32 32", "aria-hidden": "true", className: "logo" },
        h("rect", { width: 32, height: 32, rx: 7 }), h("path", { d: "M6 9h6a4 4 0 0 1 4 4v6a4 4 0 0 0 4 4h6M6 23h6" }), h("circle", { cx: 25.5, cy: 9, r: 2.6 })), "Postwire"),
      h("nav", { "aria-label": "Pages" }, pages.map(([name, title]) =>
        h("a", { href: `#/${name}`, "aria-current": name === current ? "page" : null }, title))),
      h("div", { className: "who" },
        s.unlocked ? h("p", null, "No token is configured: every user of this machine has full access.")
          : h("p", null, "Signed in as ", h("strong", null, s.role), s.name && ` (${s.name})`, s.ends && [" until ", time(s.ends)]),
        h("p", { className: "zone" }, `Time zone: ${zone}`),
        !s.unlocked && h("button", { type: "button", className: "plain", onclick: () => api.signOut().catch((err) => say(err.message, true)).finally(show) }, "Sign out"))),
    h("main", { id: "main", tabindex: "-1", "data-key": location.hash }),
  ];
}

async function show() {
  leave.abort();
  leave = new AbortController();
  const here = leave;
  document.querySelectorAll("dialog").forEach((d) => d.close());
  if (api.session.role === "nobody") return door();
  const at = route();
  const found = pages.find(([name]) => name === at.name);
  const [current, title, page] = found || within[at.name] || ["", "Not found", notFound];
  document.title = `${title} · Postwire`;
  app.className = "inside";
  app.replaceChildren(...frame(current));
  const main = document.getElementById("main");
  const opened = {
    gone: here.signal, what: at.what, query: at.query,
    show: (...what) => { if (!here.signal.aborted) fill(main, ...what); },
  };
  try {
    await page(opened);
  } catch (err) {
    if (!here.signal.aborted && err.status !== 401) opened.show(header(title), note("bad", err.message));
  }
  if (!here.signal.aborted) main.querySelector("h1")?.focus({ preventScroll: true });
}

async function notFound(page) {
  page.show(header("There is no such page"), h("p", null, h("a", { href: "#/overview" }, "To the overview")));
}

// door shows the sign-in form.
function door(why) {
  document.title = "Sign in · Postwire";
  app.className = "";
  const trouble = h("p", { className: "error", role: "alert", hidden: !why }, why);
  const token = h("input", { id: "token", name: "token", type: "password", autocomplete: "current-password", required: true });
  app.replaceChildren(h("main", { id: "main", className: "lonely", tabindex: "-1" },
    h("form", {
      className: "door",
      onsubmit: async (e) => {
        e.preventDefault();
        try {
          await api.signIn(token.value);
          token.value = "";
          await show();
        } catch (err) {
          trouble.textContent = err.message;
          trouble.hidden = false;
          token.select();
        }
      },
    },
    h("h1", null, "Postwire"),
    h("input", { type: "text", name: "username", autocomplete: "username", value: "postwire", hidden: true }), // for password managers
    h("label", { for: "token" }, "Token"), token,
    h("p", { className: "hint" }, "A token from the relay’s configuration: admin.token, your token in admin.tokens, or admin.viewer_token for read-only access."),
    trouble,
    h("button", { type: "submit", className: "primary" }, "Sign in"))));
  token.focus();
}

api.onSignedOut(() => {
  if (api.session.role === "nobody") return;
  api.session.role = "nobody";
  leave.abort();
  door("The session has ended. Sign in again.");
});

addEventListener("hashchange", show);
try {
  await api.whoAmI();
  await show();
} catch (err) {
  app.replaceChildren(h("main", { id: "main", className: "lonely" }, note("bad", err.message)));
}
