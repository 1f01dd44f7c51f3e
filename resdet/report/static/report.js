"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 24;

// Curves: the class that is selected.
const chooser = document.getElementById("curve-class");
if (chooser) {
  const show = () => document.querySelectorAll("svg.chart .of-class").forEach((line) => line.classList.toggle("shown", line.dataset.category === chooser.value));
  chooser.addEventListener("change", show);
  show();
}

if (data.pictures) {
  const root = document.getElementById("gallery"), open = makeDialog();
  const view = { names: data.names, kinds: data.kinds, threshold: data.threshold, truth: true, predictions: true, masks: false, labels: "auto" };
  const filter = { category: 0, kind: "errors", pair: null };
  let page = 0;
  const tiles = el("div", { class: "tiles", id: "tiles" }), chips = el("div", { class: "chips" });
  const status = el("span", { id: "gallery-count", role: "status" }), pager = el("div", { class: "controls pager" });
  const change = (key, value) => { filter[key] = value; if (key !== "pair") filter.pair = null; page = 0; render(); };
  const option = (value, text) => el("option", { value }, text);
  const classes = el("select", { id: "filter-class", onchange: (event) => change("category", Number(event.target.value)) },
    option(0, "all"), ...data.names.map((name, k) => option(k + 1, name)));
  const kinds = el("select", { id: "filter-kind", onchange: (event) => change("kind", event.target.value) },
    option("errors", "any error"), ...Object.entries(data.kinds).map(([kind, name]) => option(kind, name)), option(MISSED, "missed object"), option("", "all pictures"));
  kinds.value = "errors";
  const shownScore = el("output", {}, view.threshold.toFixed(2));
  const slider = el("input", { id: "threshold", type: "range", min: 0, max: 1, step: 0.01, value: view.threshold,
    oninput: (event) => { view.threshold = Number(event.target.value); shownScore.textContent = view.threshold.toFixed(2); page = 0; render(); } });
  const toggle = (key, text) => el("label", {}, el("input", { type: "checkbox", id: "show-" + key, ...(view[key] ? { checked: "" } : {}), onchange: (event) => { view[key] = event.target.checked; render(); } }), text);
  const labels = el("select", { id: "labels", onchange: (event) => { view.labels = event.target.value; render(); } }, option("auto", "where they fit"), option("on", "on"), option("off", "off"));
  const hasMasks = data.pictures.some((picture) => picture.d.some((d) => d[9]) || picture.g.some((g) => g[8]));
  root.append(
    el("div", { class: "controls" }, el("label", {}, "class", classes), el("label", {}, "show", kinds), el("label", {}, "score from", slider, shownScore),
      toggle("truth", "ground truth"), toggle("predictions", "predictions"), ...(hasMasks ? [toggle("masks", "outlines of masks")] : []), el("label", {}, "labels", labels)),
    keyOf(data.kinds), chips, tiles, pager);

  function render() {
    const shown = data.pictures.filter((picture) => filter.kind === "" && !filter.category && !filter.pair || itemsOf(picture, view).some((item) => wanted(item, filter)));
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    page = Math.min(page, pages - 1);
    const part = shown.slice(page * PAGE, (page + 1) * PAGE);
    tiles.replaceChildren(...part.map((picture, k) => tile(picture, view, { filter }, [picture.name, el("small", {}, summary(picture, view))],
      () => open(shown, page * PAGE + k, view, () => ({ filter })))));
    status.textContent = `${shown.length} of ${data.pictures.length} pictures`;
    const turn = (by, text) => { const b = el("button", { type: "button", onclick: () => { page += by; render(); root.scrollIntoView(); } }, text); b.disabled = page + by < 0 || page + by >= pages; return b; };
    pager.replaceChildren(status, ...(pages > 1 ? [turn(-1, "← worse"), ` page ${page + 1} of ${pages} `, turn(1, "better →")] : []));
    chips.replaceChildren(...(filter.pair ? [el("button", { type: "button", onclick: () => change("pair", null) }, `${data.names[filter.pair[0] - 1]} taken for ${data.names[filter.pair[1] - 1]} ✕`)] : []));
  }
  render();
  document.querySelectorAll("[data-pair]").forEach((button) => button.addEventListener("click", () => {
    filter.category = 0; classes.value = "0";
    change("pair", button.dataset.pair.split(",").map(Number));
    root.scrollIntoView();
  }));
  document.querySelectorAll("[data-show-class]").forEach((button) => button.addEventListener("click", () => {
    classes.value = button.dataset.showClass;
    change("category", Number(button.dataset.showClass));
    root.scrollIntoView();
  }));
  for (const what of ["missing", "class", "unfound"]) {
    const place = document.getElementById("suspects-" + what);
    if (!place) continue;
    const given = data.suspects.filter((suspect) => suspect.what === what);
    const pictures = given.map((suspect) => data.pictures[suspect.picture]);
    const all = { ...view, labels: "on", threshold: 0 };
    place.replaceChildren(...given.map((suspect, k) => tile(pictures[k], all, { focus: suspect }, [suspect.text, el("small", {}, pictures[k].name)],
      () => open(pictures, k, { ...view }, (at) => ({ focus: given[at] })))));
  }
}
