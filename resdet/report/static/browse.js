"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const about = JSON.parse(document.getElementById("about").textContent);
document.getElementById("title").textContent = about.title;
document.getElementById("summary").textContent = about.summary;
const view = { names: data.names, kinds: data.kinds, threshold: data.threshold, truth: true, predictions: data.predicts || null, masks: true, labels: "auto" };
const query = { label: "", size: "", least: "", most: "", name: "", finding: "" };
const root = document.getElementById("browse"), open = makeDialog();
const tiles = el("div", { class: "tiles", id: "tiles" }), pager = el("div", { class: "controls pager" }), error = el("p", { role: "alert" });
let page = 0, shown = [], total = 0, asked = 0;

const option = (value, text) => el("option", { value }, text);
const field = (key, element) => {
  element.id = "query-" + key;
  let waiting;
  element.addEventListener("input", () => { query[key] = element.value; page = 0; clearTimeout(waiting); waiting = setTimeout(load, 150); });
  return element;
};
const findings = field("finding", el("select", {}, option("", "any")));
const check = el("button", { type: "button", class: "act", onclick: lookForFindings }, "check the data");
const toggle = (key, text) => el("label", {}, el("input", { type: "checkbox", id: "show-" + key, ...(view[key] ? { checked: "" } : {}), onchange: (event) => { view[key] = event.target.checked; draw(); } }), text);
const score = el("output", {}, view.threshold.toFixed(2));
root.append(
  el("div", { class: "controls" },
    el("label", {}, "class", field("label", el("select", {}, option("", "any"), ...data.names.map((name, k) => option(k, name))))),
    el("label", {}, "size", field("size", el("select", {}, option("", "any"), ...Object.entries(data.sizes).map(([value, text]) => option(value, text))))),
    el("label", {}, "objects from", field("least", el("input", { type: "number", min: 0 })), "to", field("most", el("input", { type: "number", min: 0, "aria-label": "objects at most" }))),
    el("label", {}, "file name", field("name", el("input", { type: "search" }))),
    el("label", {}, "finding", findings), check),
  el("div", { class: "controls" }, toggle("truth", "annotations"),
    ...(data.predicts ? [toggle("predictions", "predictions"), el("label", {}, "score from", el("input", { type: "range", id: "threshold", min: 0, max: 1, step: 0.01, value: view.threshold,
      oninput: (event) => { view.threshold = Number(event.target.value); score.textContent = view.threshold.toFixed(2); draw(); } }), score)] : []),
    toggle("masks", "outlines of masks"),
    el("label", {}, "labels", el("select", { id: "labels", onchange: (event) => { view.labels = event.target.value; draw(); } }, option("auto", "where they fit"), option("on", "on"), option("off", "off")))),
  ...(data.predicts ? [keyOf(data.kinds)] : []), error, tiles, pager);

function draw() {
  tiles.replaceChildren(...shown.map((picture, k) => tile(picture, view, {}, [picture.name, el("small", {}, picture.waiting ? "predicting …" : summary(picture, view))],
    () => open(shown, k, view, () => ({})))));
}

async function load() {
  const mine = ++asked;
  const reply = await (await fetch("/pictures?" + new URLSearchParams({ ...query, page }))).json();
  if (mine !== asked) return;
  error.textContent = reply.error || "";
  shown = reply.pictures || [];
  total = reply.total || 0;
  if (data.predicts) shown.forEach((picture) => { picture.waiting = true; });
  draw();
  const pages = Math.max(1, Math.ceil(total / data.per));
  const turn = (to, text) => { const b = el("button", { type: "button", onclick: () => { page = to; load(); window.scrollTo(0, 0); } }, text); b.disabled = to < 0 || to >= pages || to === page; return b; };
  const jump = el("input", { type: "number", min: 1, max: pages, value: page + 1, "aria-label": "page", onchange: (event) => { page = Math.min(pages, Math.max(1, Number(event.target.value) || 1)) - 1; load(); } });
  pager.replaceChildren(el("span", { id: "count", role: "status" }, `${total} of ${data.total} pictures`), turn(0, "first"), turn(page - 1, "← previous"), "page", jump, `of ${pages}`, turn(page + 1, "next →"), turn(pages - 1, "last"));
  if (data.predicts) for (let k = 0; k < shown.length; k++) {
    const picture = await (await fetch("/predicted/" + shown[k].id)).json();
    if (mine !== asked) return;
    if (!picture.error) shown[k] = picture; else { shown[k].waiting = false; error.textContent = picture.error; }
    draw();
  }
}

async function lookForFindings() {
  check.disabled = true;
  await fetch("/findings", { method: "POST" });
  const poll = async () => {
    const reply = await (await fetch("/findings")).json();
    check.textContent = reply.state === "done" ? "checked" : reply.state;
    if (reply.state === "looking") return setTimeout(poll, 700);
    findings.replaceChildren(option("", reply.list.length ? "any" : "nothing found"), ...reply.list.map((f) => option(f.code, `${f.what} (${f.count}, in ${f.images} pictures)`)));
  };
  poll();
}
load();
