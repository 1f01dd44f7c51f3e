"use strict";
// Pictures with detections and objects, as `gallery.py` writes them:
// {name, w, h, id, src, d: [[x, y, w, h, category, score, kind, object, iou, path]], g: [[x, y, w, h, category, kind, detection, iou, path]]}
const RIGHT = 0, IGNORED = 1, WRONG_CLASS = 2, MISSED = 10, MISSED_KIND = 2;
const STYLE = { // by kind: colour and dashes
  0: ["#2fc79b", ""], 1: ["#bbbbbb", "2 3"], 2: ["#e3a0c6", ""], 3: ["#56b4e9", ""], 4: ["#f0803c", "8 3"], 5: ["#f0e442", "2 2"],
  6: ["#ff8c42", ""], 10: ["#f0e442", "7 5"], 11: ["#ffffff", "4 4"],
};
const CLASSES = ["#56b4e9", "#e69f00", "#2fc79b", "#f0e442", "#e3a0c6", "#d55e00", "#ffffff"]; // colours of classes, in turn
const SVG = "http://www.w3.org/2000/svg";

function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function shape(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const percent = (value) => Math.round(100 * value) + " %";

// What there is to see in a picture at a threshold: one item for each detection and object, each with its reason.
function itemsOf(picture, view) {
  const { names, kinds } = view, items = [];
  picture.d.forEach(([x, y, w, h, category, score, kind, object, iou, path], k) => {
    if (score < view.threshold) return;
    const of = object >= 0 ? picture.g[object][4] : null;
    let why = kinds[kind];
    if (kind === WRONG_CLASS || kind === 4) why += of === null ? "" : `: annotated as ${names[of - 1]}`;
    if (kind === 3 || kind === 4 || kind === RIGHT) why += `, IoU ${iou.toFixed(2)}`;
    items.push({ detection: k, x, y, w, h, path, category, of, kind, score, label: `${names[category - 1]} ${percent(score)}`, why });
  });
  picture.g.forEach(([x, y, w, h, category, kind, detection, iou, path], k) => {
    const finder = detection >= 0 ? picture.d[detection] : null;
    const state = view.predictions === null ? 0 : finder && finder[5] >= view.threshold ? kind : MISSED_KIND;
    const why = view.predictions === null ? "" : ["found", "nearly found", "missed"][state] + (state === MISSED_KIND && iou < 0.1 ? ", nothing near it" : "");
    items.push({ object: k, x, y, w, h, path, category, kind: state === MISSED_KIND ? MISSED : 11, state, label: names[category - 1], why });
  });
  return items;
}

const isError = (item) => item.object === undefined ? item.kind > IGNORED : item.kind === MISSED;

function wanted(item, filter) {
  if (filter.pair) return item.kind === WRONG_CLASS && item.of === filter.pair[0] && item.category === filter.pair[1];
  if (filter.category && item.category !== filter.category && item.of !== filter.category) return false;
  if (filter.kind === "") return true;
  if (filter.kind === "errors") return isError(item);
  return item.kind === Number(filter.kind);
}

// An SVG of a picture. focus: an item to show alone with its surroundings; large: in the dialog.
function drawing(picture, view, { filter = { kind: "" }, focus = null, large = false } = {}) {
  const { w, h } = picture;
  let frame = [0, 0, w, h];
  const items = itemsOf(picture, focus ? { ...view, threshold: 0 } : view);
  const chosen = focus && items.find((item) => item[focus.what === "unfound" ? "object" : "detection"] === focus.row);
  if (chosen && !large) {
    const side = Math.max(chosen.w, chosen.h, 0.12 * Math.max(w, h)) * 2.2, fw = Math.min(w, side), fh = Math.min(h, side);
    frame = [Math.min(Math.max(0, chosen.x + chosen.w / 2 - fw / 2), w - fw), Math.min(Math.max(0, chosen.y + chosen.h / 2 - fh / 2), h - fh), fw, fh];
  }
  const svg = shape("svg", { viewBox: frame.join(" "), role: "img", "aria-label": picture.name });
  if (picture.src) svg.append(shape("image", { href: picture.src, width: w, height: h, preserveAspectRatio: "none" }));
  const font = large ? 14 * Math.max(frame[2] / 1100, frame[3] / 650) : 12 * Math.max(frame[2] / 260, frame[3] / 200);
  const shown = items.filter((item) => item.object === undefined ? view.predictions : view.truth);
  const labels = view.labels === "on" || (view.labels === "auto" && (chosen || shown.length <= (large ? 30 : 6)));
  const numbers = large ? numbered(items, view) : new Map();
  for (const item of shown) {
    const fades = chosen ? item !== chosen : !wanted(item, filter);
    if (chosen && !large && fades && item.score < view.threshold) continue;
    const group = shape("g", fades ? { class: "dim" } : {});
    const [color, dash] = view.predictions === null ? [CLASSES[item.category % CLASSES.length], ""] : STYLE[item.kind], width = isError(item) && !fades ? (large ? 3 : 2.5) : 1.5;
    const outline = item.path && view.masks ? ["path", { d: item.path }] : ["rect", { x: item.x, y: item.y, width: item.w, height: item.h }];
    group.append(shape(outline[0], { ...outline[1], class: "b halo", "stroke-width": width + 2 }));
    group.append(shape(outline[0], { ...outline[1], class: "b", stroke: color, "stroke-width": width, "stroke-dasharray": dash }));
    const title = shape("title", {});
    title.textContent = `${item.label}: ${item.why}`;
    group.append(title);
    const label = [numbers.get(item), labels ? item.label : null].filter((part) => part).join(" ");
    if (label && !fades) {
      const inside = item.object !== undefined;
      const text = shape("text", { class: "l", x: Math.max(item.x, frame[0]) + font * 0.2, y: inside ? Math.min(item.y + item.h, frame[1] + frame[3]) - font * 0.3 : Math.max(item.y - font * 0.3, frame[1] + font), "font-size": font });
      text.textContent = label;
      group.append(text);
    }
    svg.append(group);
  }
  return svg;
}

// What the list below a large picture names, by its number there.
function numbered(items, view) {
  const listed = items.filter((item) => view.predictions === null || isError(item));
  return new Map(listed.map((item, k) => [item, k + 1]));
}

// "2 missed, 1 wrong class"
function summary(picture, view) {
  const counts = new Map();
  for (const item of itemsOf(picture, view)) if (isError(item)) {
    const name = item.kind === MISSED ? "missed" : view.kinds[item.kind];
    counts.set(name, (counts.get(name) || 0) + 1);
  }
  const text = [...counts].map(([name, count]) => `${count} ${name}`).join(", ");
  return view.predictions === null ? `${picture.g.length} object${picture.g.length === 1 ? "" : "s"}` : text || "no error";
}

// One dialog for all tiles: the picture large, a list of what is on it, arrow keys for its neighbours.
function makeDialog() {
  const name = el("b"), body = el("div"), list = el("ol");
  let pictures = [], at = 0, show = () => {};
  const step = (by) => { if (pictures.length) { at = (at + by + pictures.length) % pictures.length; show(); } };
  const dialog = el("dialog", { "aria-label": "picture" },
    el("div", { class: "bar-top" }, name,
      el("button", { type: "button", onclick: () => step(-1) }, "← previous"), el("button", { type: "button", onclick: () => step(1) }, "next →"),
      el("button", { type: "button", onclick: () => dialog.close() }, "close")), body, list);
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") step(1);
    if (event.key === "ArrowLeft") step(-1);
  });
  document.body.append(dialog);
  return (given, start, view, options) => {
    pictures = given; at = start;
    show = () => {
      const picture = pictures[at], of = options(at);
      name.textContent = picture.name;
      body.replaceChildren(drawing(picture.large ? { ...picture, src: picture.large } : picture, view, { ...of, large: true }));
      list.replaceChildren(...[...numbered(itemsOf(picture, of.focus ? { ...view, threshold: 0 } : view), view).keys()].map((item) => el("li", {}, `${item.label}${item.why ? ": " + item.why : ""}`)));
    };
    show();
    if (!dialog.open) dialog.showModal();
  };
}

function tile(picture, view, options, text, open) {
  return el("button", { type: "button", class: "tile", onclick: open }, drawing(picture, view, options), el("span", { class: "text" }, ...text));
}

function keyOf(kinds) {
  const line = (kind, text) => {
    const [color, dash] = STYLE[kind], svg = shape("svg", { viewBox: "0 0 32 12", "aria-hidden": "true" });
    svg.append(shape("path", { d: "M2 6H30", stroke: color, "stroke-width": 3, "stroke-dasharray": dash }));
    return el("li", {}, svg, text);
  };
  const names = Object.entries(kinds).map(([kind, name]) => line(kind, name));
  return el("ul", { class: "key" }, ...names, line(MISSED, "missed object"), line(11, "object, found or nearly"));
}
