// Components for pages.
import { h } from "./dom.js";

// table is a table that stays readable on a narrow screen: rows are stacked, and each
// cell shows the title of its column.
export function table({ caption, columns, rows, empty }) {
  if (!rows.length) return h("p", { className: "empty" }, empty);
  return h("div", { className: "scroll" },
    h("table", { role: "table" },
      h("caption", { className: "unseen" }, caption),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map((c) => h("th", { role: "columnheader", scope: "col", className: c.number ? "number" : "" }, c.unseen ? h("span", { className: "unseen" }, c.title) : c.title)))),
      h("tbody", { role: "rowgroup" }, rows.map((row) => h("tr", { role: "row", "data-key": row.key, className: row.className },
        row.cells.map((cell, i) => h("td", { role: "cell", className: (columns[i].number ? "number " : "") + (columns[i].className || ""), "data-label": columns[i].unseen ? null : columns[i].title }, h("div", { className: "cell" }, cell))))))));
}

// field is a labelled form control.
export function field(label, control, hint) {
  const id = control.id;
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  return h("div", { className: "field" }, h("label", { for: id }, label), control, hint && h("p", { className: "hint", id: `${id}-hint` }, hint));
}

export const input = (id, props) => h("input", { id, name: id, type: "text", autocomplete: "off", spellcheck: "false", ...props });

export const select = (id, options, chosen, props) => h("select", { id, name: id, ...props },
  options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));

// facts is a list of names and values.
export const facts = (pairs) => h("dl", { className: "facts" },
  pairs.filter((p) => p && p[1] !== null && p[1] !== undefined && p[1] !== "").map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));

export const note = (tone, ...what) => h("div", { className: `note ${tone}`, role: tone === "bad" ? "alert" : null }, ...what);

// header is the header of a page; the heading gets the focus when the page opens.
export const header = (title, ...more) => h("header", { className: "page" }, h("h1", { tabindex: "-1" }, title), more);

// poll runs ask every given number of milliseconds while the page is open and visible,
// one call at a time.
export function poll(page, interval, ask) {
  let timer;
  const run = async () => {
    clearTimeout(timer);
    if (page.gone.aborted) return;
    if (!document.hidden) await ask();
    if (!page.gone.aborted) timer = setTimeout(run, interval);
  };
  const wake = () => { if (!document.hidden) run(); };
  document.addEventListener("visibilitychange", wake, { signal: page.gone });
  page.gone.addEventListener("abort", () => clearTimeout(timer));
  return run();
}
