// DOM elements from text nodes only: text from a sender is never parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";
const drawn = new Set(["svg", "path", "line", "polyline", "polygon", "circle", "rect", "g", "text", "title"]);

// h creates an element. Event handlers are properties (onclick), so that morph can
// copy handlers; false, null and undefined omit an attribute or a child.
export function h(tag, props, ...children) {
  const el = drawn.has(tag) && tag !== "title" ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props || {})) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) el[name] = value;
    else if (name === "value" && tag !== "option" && tag !== "progress") { el.value = value; el.setAttribute("value", value); }
    else if (name === "checked") { el.checked = true; el.setAttribute("checked", ""); }
    else el.setAttribute(name === "className" ? "class" : name, value === true ? "" : String(value));
  }
  append(el, children);
  return el;
}

function append(el, children) {
  for (const child of children) {
    if (Array.isArray(child)) append(el, child);
    else if (child !== null && child !== undefined && child !== false && child !== "") {
      el.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
  }
}

// morph changes the element from into a copy of the element to, and keeps unchanged
// nodes, so that focus, typed text and scroll position survive.
export function morph(from, to) {
  if (from.nodeType !== to.nodeType || from.nodeName !== to.nodeName || key(from) !== key(to)) {
    from.replaceWith(to);
    return to;
  }
  if (from.nodeType === Node.TEXT_NODE) {
    if (from.data !== to.data) from.data = to.data;
    return from;
  }
  if (from.hasAttribute("data-kept")) return from; // the page updates this element itself
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && !(name === "open" && from.nodeName === "DETAILS")) from.removeAttribute(name);
  }
  for (const { name, value } of [...to.attributes]) {
    if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  }
  if (from.nodeName === "INPUT" && from.type === "checkbox") from.checked = to.checked;
  for (const name of ["onclick", "onsubmit", "onchange", "oninput", "onpointermove", "onpointerleave", "onkeydown", "ontoggle"]) {
    if (from[name] !== to[name]) from[name] = to[name];
  }
  children(from, to);
  return from;
}

// children changes the children of from into copies of the children of to.
function children(from, to) {
  const old = [...from.childNodes], fresh = [...to.childNodes];
  const keyed = new Map(old.filter((n) => key(n)).map((n) => [key(n), n]));
  let at = from.firstChild;
  for (const child of fresh) {
    const same = key(child) && keyed.get(key(child));
    if (same && same !== at) from.insertBefore(same, at);
    if (same) at = same;
    if (!at) { from.append(child); continue; }
    if (!same && key(at)) { from.insertBefore(child, at); continue; } // at belongs to a later child
    const next = at.nextSibling;
    morph(at, child);
    at = next;
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

const key = (n) => (n.nodeType === Node.ELEMENT_NODE ? n.getAttribute("data-key") : null);

// fill replaces the children of an element. A child that is already in place, and has
// data-kept, is not moved, because moving an element loses the focus.
export function fill(el, ...what) {
  const next = el.cloneNode(false);
  append(next, what.flat(9).map((child) => (child instanceof Element && child.parentNode === el ? child.cloneNode(false) : child)));
  children(el, next);
}

// say shows the result of an action as a message, also to screen readers.
let hideTimer;
export function say(text, bad) {
  const message = document.getElementById("said");
  message.replaceChildren(h("p", { className: bad ? "bad" : "good" }, text, h("button", { type: "button", className: "plain", onclick: () => message.replaceChildren(), "aria-label": "Close this message" }, "×")));
  clearTimeout(hideTimer);
  hideTimer = setTimeout(() => message.replaceChildren(), bad ? 20000 : 8000);
}

// ask opens a dialog and resolves when the dialog closes: to true if the user
// confirmed. The optional act runs while the dialog is open; an error of act is shown
// in the dialog.
export function ask({ title, body, confirm, dangerous, act }) {
  return new Promise((resolve) => {
    const trouble = h("p", { className: "error", role: "alert", hidden: true });
    const yes = h("button", { type: "submit", className: dangerous ? "danger" : "primary" }, confirm);
    const progress = h("div", { className: "progressing", role: "status" });
    let done = false;
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" },
      h("form", {
        method: "dialog",
        onsubmit: async (e) => {
          e.preventDefault();
          if (!act) { done = true; dialog.close(); return; }
          yes.disabled = true;
          trouble.hidden = true;
          try {
            await act((...what) => progress.replaceChildren(...what));
            done = true;
            dialog.close();
          } catch (err) {
            trouble.textContent = err.message;
            trouble.hidden = false;
            yes.disabled = false;
          }
        },
      },
      h("h2", { id: "dialog-title" }, title), body, progress, trouble,
      h("div", { className: "actions" }, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), yes)));
    dialog.addEventListener("close", () => { dialog.remove(); resolve(done); });
    document.body.append(dialog);
    dialog.showModal();
  });
}
