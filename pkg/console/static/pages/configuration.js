// The configuration in effect, and the result of the last reload.
import { h, say } from "../dom.js";
import * as api from "../api.js";
import { header, facts, poll, note, field, select } from "../parts.js";
import { age, time } from "../text.js";

export default async function configuration(page) {
  const refresh = async () => {
    try {
      const [c, level] = await Promise.all([api.get("/configuration", null, page.gone), api.get("/log-level", null, page.gone)]);
      page.show(...draw(c, level.level, refresh));
    } catch (err) {
      if (err.name !== "AbortError") page.show(header("Configuration"), note("bad", err.message));
    }
  };
  await poll(page, 10000, refresh);
}

function draw(c, level, refresh) {
  const reload = async () => {
    try {
      const { changed } = await api.post("/reload");
      say(changed.length ? `Reloaded; changed: ${changed.join(", ")}.` : "Reloaded; no change.");
    } catch (err) { say("The relay refused the change; the previous configuration stays in effect.", true); }
    refresh();
  };
  return [
    header("Configuration", h("p", { className: "aside" }, "in effect, with every default and without secrets")),
    h("section", { "aria-labelledby": "reload" }, h("h2", { id: "reload" }, "Last reload"),
      !c.last && h("p", { className: "muted" }, "No reload since the start of the process, ", time(c.began, true), ` (${age(c.began)} ago).`),
      c.last && (c.last.applied
        ? note("good", h("p", null, h("strong", null, "Applied "), time(c.last.at, true)), h("p", null, c.last.changed.length ? c.last.changed.join(", ") : "The configuration had no change."))
        : note("bad", h("p", null, h("strong", null, "Refused "), time(c.last.at, true), "; the previous configuration is in effect."), h("ul", { className: "problems" }, (c.last.problem || "").split("\n").filter(Boolean).map((line) => h("li", null, line))))),
      h("div", { className: "actions" },
        api.operator() && h("button", { type: "button", "data-act": "reload", onclick: reload }, "Reload now"),
        api.operator() ? field("Log level", select("level", ["debug", "info", "warn", "error"].map((l) => [l, l]), level, { onchange: async (e) => {
          try { await api.put("/log-level", { level: e.target.value }); say(`The log level is ${e.target.value} now, until a restart or a change of log.level in the configuration.`); } catch (err) { say(err.message, true); }
        } })) : facts([["Log level", level]]))),
    h("section", { "aria-labelledby": "text" }, h("h2", { id: "text" }, "In effect ", h("span", { className: "aside" }, c.file)),
      h("pre", { className: "yaml", tabindex: "0", "aria-label": "The configuration in YAML" }, c.yaml.split("\n").map(colored))),
  ];
}

// colored highlights keys and hidden secrets in a line of YAML.
function colored(line) {
  const m = /^(\s*(?:- )?)([\w.$-]+)(:)(.*)$/.exec(line);
  if (!m) return line + "\n";
  return [m[1], h("span", { className: "key" }, m[2]), m[3], m[4].trim() === "'***'" ? h("span", { className: "hidden-value" }, m[4]) : m[4], "\n"];
}
