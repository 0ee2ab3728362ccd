// Small SVG charts of the last hour.
import { h } from "./dom.js";
import { clockOf } from "./text.js";

// path returns the SVG paths of a line and an area through the points, with gaps for
// missing values.
function path(points, width, height, max) {
  let line = "", area = "", going = false, last = 0;
  const step = points.length > 1 ? width / (points.length - 1) : 0;
  const end = () => { if (going) area += `L${last.toFixed(1)} ${height}Z`; };
  points.forEach((v, i) => {
    if (v === null || v === undefined) { end(); going = false; return; }
    const x = i * step, y = height - 1 - (v / max) * (height - 3);
    line += `${going ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    area += going ? `L${x.toFixed(1)} ${y.toFixed(1)}` : `M${x.toFixed(1)} ${height}L${x.toFixed(1)} ${y.toFixed(1)}`;
    going = true;
    last = x;
  });
  end();
  return [line, area];
}

const max = (points) => Math.max(0, ...points.filter((v) => v !== null && v !== undefined));
export const latest = (points) => (points && points.length ? points[points.length - 1] : null);

// spark is a chart as high as a line of text, with a text for screen readers.
export function spark(points, { label, tone, format }) {
  const width = 160, height = 32, top = max(points);
  const [line, area] = path(points, width, height, top || 1);
  return h("svg", {
    className: `spark ${tone || ""}`, viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img",
    "aria-label": points.length ? `${label}: now ${format(latest(points) ?? 0)}, maximum ${format(top)} in the last hour` : `${label}: no data yet`,
  }, h("line", { x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5, class: "ground" }), h("path", { d: area, class: "area" }), h("path", { d: line, class: "line" }));
}

// chart is a chart with a scale; under the pointer, the chart shows the value.
export function chart(times, points, { label, tone, format, id }) {
  const width = 600, height = 96, top = max(points);
  const [line, area] = path(points, width, height, top || 1);
  const now = latest(points);
  const read = (text) => { const el = document.getElementById(id); if (el) el.textContent = text; };
  const idle = now === null || now === undefined ? "no data yet" : `${format(now)} now`;
  return h("figure", { className: `chart ${tone || ""}` },
    h("figcaption", null, h("span", null, label), h("output", { id }, idle)),
    h("div", { className: "frame" },
      h("span", { className: "top", "aria-hidden": "true" }, top ? format(top) : ""),
      h("svg", {
        viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img",
        "aria-label": times.length ? `${label}, the last hour: now ${format(now ?? 0)}, maximum ${format(top)}` : `${label}: no data yet`,
        onpointermove: (e) => {
          const box = e.currentTarget.getBoundingClientRect();
          const i = Math.round(((e.clientX - box.left) / box.width) * (points.length - 1));
          if (points[i] !== null && points[i] !== undefined) read(`${format(points[i])} at ${clockOf(times[i])}`);
        },
        onpointerleave: () => read(idle),
      },
      [0.25, 0.5, 0.75].map((part) => h("line", { x1: 0, x2: width, y1: height * part, y2: height * part, class: "grid" })),
      h("line", { x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5, class: "ground" }),
      h("path", { d: area, class: "area" }), h("path", { d: line, class: "line" }))),
    h("div", { className: "axis", "aria-hidden": "true" }, h("span", null, times.length ? clockOf(times[0]) : ""), h("span", null, times.length ? clockOf(times[times.length - 1]) : "")));
}
