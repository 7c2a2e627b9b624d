"use strict";
const { studies, problems } = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const view = { study: null, hidden: new Set(), chosen: null, sort: null, picture: 0, out: new Set() };

/* small helpers */
const mean = values => values.reduce((sum, x) => sum + x, 0) / values.length;
const deviation = values => values.length < 2 ? 0
  : Math.sqrt(values.reduce((sum, x) => sum + (x - mean(values)) ** 2, 0) / (values.length - 1));
const digits = x => Math.abs(x) >= 100 ? 0 : Math.abs(x) >= 2 ? 2 : 3;
const number = x => x.toFixed(digits(x));
const measured = values => number(mean(values)) + (values.length > 1 ? ` \u00b1 ${deviation(values).toFixed(digits(mean(values)))}` : "");
const signed = (x, spread = 0) => (x < 0 ? "\u2212" : "+") + number(Math.abs(x)) + (spread ? ` \u00b1 ${spread.toFixed(digits(x))}` : "");
const tick = x => String(+x.toPrecision(3));
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made[key] = value; else if (value != null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}
const safe = text => text.replace(/[&<>"]/g, c => "&#" + c.charCodeAt(0) + ";");
const dot = method => element("i", { style: `background:${view.study.colours[method]}` });
function options(select, names, chosen) {
  select.replaceChildren(...names.map(([value, text]) => element("option", { value }, text)));
  select.value = chosen;
}
const row = label => view.study.rows.find(r => r.label === label);

/* points that none beats: ascending cost, each better than all cheaper ones */
function front(points, up) {
  const better = (a, b) => up ? a > b : a < b;
  const sorted = [...points].sort((a, b) => a.x - b.x || (up ? b.y - a.y : a.y - b.y));
  const found = [];
  for (const p of sorted) if (!found.length || better(p.y, found.at(-1).y)) found.push(p);
  return found;
}

/* the plane */
const W = 1080, H = 470, LEFT = 62, RIGHT = 18, TOP = 14, BOTTOM = 46;
function scale(values, log, from, to) {
  const f = log ? Math.log : x => x;
  let low = f(Math.min(...values)), high = f(Math.max(...values));
  const room = (high - low || Math.abs(high) || 1) * .06;
  low -= room; high += room;
  const place = value => from + (f(value) - low) / (high - low) * (to - from);
  const [first, last] = log ? [Math.exp(low), Math.exp(high)] : [low, high];
  return { place, ticks: ticks(first, last, log) };
}
function ticks(low, high, log) {
  const found = [];
  if (log && high / low > 3) {
    for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) {
      for (const m of high / low > 60 ? [1, 3] : high / low > 8 ? [1, 2, 3, 5, 7] : [1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9]) found.push(m * power);
    }
  } else {
    const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find(m => m * power >= rough);
    for (let x = Math.ceil(low / step) * step; x <= high; x += step) found.push(+x.toPrecision(12));
  }
  return found.filter(x => x >= low && x <= high);
}
function draw() {
  const { rows, colours, metrics, costs } = view.study;
  const metric = $("metric").value, cost = $("cost").value, log = $("log").checked, { up } = metrics.find(m => m.name === metric);
  const points = rows.filter(r => r.quality[metric] && r[cost] != null && !view.hidden.has(r.method))
    .map(r => ({ row: r, x: r[cost], y: mean(r.quality[metric]), s: deviation(r.quality[metric]) }));
  if (!points.length) { $("chart").replaceChildren(element("p", { class: "note" }, "Nothing of this is measured, or all is hidden.")); return; }
  const file = view.study.front?.metric === metric && cost === "time" ? view.study.front.points : [];
  const x = scale([...points, ...file].map(p => p.x), log, LEFT, W - RIGHT);
  const y = scale([...points, ...file].flatMap(p => [p.y - (p.s ?? 0), p.y + (p.s ?? 0)]).filter(v => !log || up || v > 0), log && !up, H - BOTTOM, TOP);
  const at = p => `${x.place(p.x).toFixed(1)},${y.place(p.y).toFixed(1)}`;
  const parts = [];
  for (const t of x.ticks) parts.push(`<line class=tick x1=${x.place(t)} x2=${x.place(t)} y1=${TOP} y2=${H - BOTTOM} />`,
    `<text x=${x.place(t)} y=${H - BOTTOM + 17} text-anchor=middle>${tick(t)}</text>`);
  for (const t of y.ticks) parts.push(`<line class=tick x1=${LEFT} x2=${W - RIGHT} y1=${y.place(t)} y2=${y.place(t)} />`,
    `<text x=${LEFT - 8} y=${y.place(t) + 4} text-anchor=end>${tick(t)}</text>`);
  const label = costs.find(c => c.key === cost).label;
  parts.push(`<text x=${(LEFT + W - RIGHT) / 2} y=${H - 8} text-anchor=middle>${safe(label)}</text>`,
    `<text transform="translate(14 ${(TOP + H - BOTTOM) / 2}) rotate(-90)" text-anchor=middle>${safe(metric)} (${up ? "higher" : "lower"} is better)</text>`);
  const best = front(points, up);
  const stairs = best.flatMap((p, i) => i ? [`${x.place(p.x)},${y.place(best[i - 1].y)}`, at(p)] : [at(p)]);
  const [bad, good] = up ? [H - BOTTOM, TOP] : [TOP, H - BOTTOM];
  const ends = [`${LEFT},${bad}`, `${x.place(best[0].x)},${bad}`, ...stairs, `${W - RIGHT},${y.place(best.at(-1).y)}`];
  parts.push(`<polygon class=band points="${ends.join(" ")} ${W - RIGHT},${good} ${LEFT},${good}" />`,
    `<polyline class=front points="${stairs.join(" ")}" />`);
  parts.push(`<polyline class=file points="${front(file, up).map(at).join(" ")}" />`);
  for (const p of file) parts.push(`<path class=file d="M${at(p)}m0,-6l5,6l-5,6l-5,-6z"><title>${safe(`${p.label}: ${number(p.y)}, ${number(p.x)} ms`)}</title></path>`);
  const lines = Map.groupBy(points, p => p.row.method + (p.row.n === p.row.b ? "" : " " + p.row.n));
  for (const all of lines.values()) {  /* settings other than B make a cloud: then its own front is joined */
    const line = all.some(p => p.row.variant) ? front(all, up) : all.sort((a, b) => a.x - b.x);
    parts.push(`<polyline points="${line.map(at).join(" ")}" fill=none stroke="${colours[line[0].row.method]}" stroke-width=1.6 opacity=.75 />`);
  }
  for (const p of points) {
    const px = x.place(p.x), colour = colours[p.row.method], low = log && !up ? Math.max(p.y - p.s, p.y * .5) : p.y - p.s;
    if (p.s) parts.push(`<line class=error x1=${px} x2=${px} y1=${y.place(low)} y2=${y.place(p.y + p.s)} stroke="${colour}" stroke-width=1.6 />`);
    const chosen = p.row.label === view.chosen ? " chosen" : "";
    parts.push(`<circle class="mark${chosen}" data-label="${safe(p.row.label)}" cx=${px} cy=${y.place(p.y)} r=${chosen ? 8 : 6} fill="${colour}" />`);
  }
  for (const p of best) {  /* beside the front, where nothing is */
    parts.push(`<text class=name x=${x.place(p.x) - 8} y=${y.place(p.y) + (up ? -8 : 15)} text-anchor=end>${safe(p.row.label.replace(p.row.method, "").replace(p.row.variant, "").trim())}</text>`);
  }
  $("chart").innerHTML = `<svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${safe(metric)} against ${safe(label)}">${parts.join("")}</svg>`;
  for (const mark of $("chart").querySelectorAll(".mark")) {
    const point = points.find(p => p.row.label === mark.dataset.label);
    mark.onmouseenter = () => tip(point, mark, metric);
    mark.onmouseleave = () => $("tip")?.remove();
    mark.onclick = () => choose(point.row.label, true);
  }
}
function tip({ row: r }, mark, metric) {
  $("tip")?.remove();
  const base = row($("baseline").value), quality = r.quality[metric], lines = [element("b", {}, r.label)];
  lines.push(`${metric}: ${measured(quality)}`);
  if (base.quality[metric]) lines.push(`${signed(mean(quality) - mean(base.quality[metric]))} against ${base.label}`);
  for (const { key, label } of view.study.costs) if (r[key] != null) lines.push(`${number(r[key])} ${label}`);
  if (r.time && base.time) lines.push(`${number(base.time / r.time)}\u00d7 as fast as ${base.label}`);
  const box = element("div", { id: "tip" }, ...lines.flatMap((line, i) => i ? [element("br"), line] : [line]));
  $("chart").append(box);
  const circle = mark.getBoundingClientRect(), frame = $("chart").getBoundingClientRect();
  const left = circle.left - frame.left + 16;
  box.style.left = Math.max(0, left + box.offsetWidth > frame.width ? left - box.offsetWidth - 26 : left) + "px";
  box.style.top = Math.max(0, circle.top - frame.top - box.offsetHeight / 2) + "px";
}
function legend() {
  const methods = [...new Set(view.study.rows.map(r => r.method))];
  $("legend").replaceChildren(...methods.map(method => element("button", {
    "aria-pressed": !view.hidden.has(method),
    onclick: () => { view.hidden.delete(method) || view.hidden.add(method); legend(); draw(); },
  }, dot(method), method)));
}

/* the tables */
function columns() {
  const base = row($("baseline").value), deltas = $("shown").value === "deltas", { metrics, costs } = view.study;
  const quality = metrics.map(({ name, up }) => ({
    heading: deltas ? `${name} \u2212 ${base.label}` : name,
    key: r => r.quality[name] && mean(r.quality[name]),
    best: up ? Math.max : Math.min,
    text: r => {
      if (!r.quality[name]) return "";
      if (!deltas) return measured(r.quality[name]);
      if (!base.quality[name]) return "";
      const s = Math.hypot(deviation(r.quality[name]), deviation(base.quality[name]));
      return signed(mean(r.quality[name]) - mean(base.quality[name]), r === base ? 0 : s);
    },
    look: r => deltas && r.quality[name] && base.quality[name] && r !== base
      ? ((mean(r.quality[name]) > mean(base.quality[name])) === up ? "good" : "bad") : "",
  }));
  const share = costs.map(({ key, short }) => ({
    heading: deltas ? `${short} \u00f7 ${base.label}` : short,
    key: r => r[key],
    text: r => r[key] == null ? "" : deltas ? (base[key] ? (100 * r[key] / base[key]).toFixed(1) + "%" : "") : number(r[key]),
    look: () => "",
  }));
  const speed = { heading: `speed-up on ${base.label}`, key: r => r.time && base.time / r.time, look: () => "",
    text: r => r.time && base.time ? (base.time / r.time).toFixed(2) + "\u00d7" : "" };
  return [{ heading: "method", key: r => r.method, text: r => `${r.method} ${r.variant}`.trim(), look: () => "" },
    { heading: "N", key: r => r.n, text: r => String(r.n), look: () => "" },
    { heading: "B", key: r => r.b, text: r => String(r.b), look: () => "" }, ...quality, ...share, speed];
}
function table() {
  const list = columns(), { sort } = view, rows = [...view.study.rows];
  if (sort) {
    const empty = v => v == null || Number.isNaN(v);
    const key = list[sort.column].key;
    rows.sort((a, b) => {
      const [u, v] = [key(a), key(b)];
      return empty(u) || empty(v) ? empty(u) - empty(v) : (u > v ? 1 : u < v ? -1 : 0) * (sort.down ? -1 : 1);
    });
  }
  const head = list.map((c, i) => element("th", { scope: "col", "aria-sort": sort?.column === i ? (sort.down ? "descending" : "ascending") : null,
    onclick: () => { view.sort = { column: i, down: sort?.column === i && !sort.down }; table(); } }, c.heading));
  const body = rows.map(r => {
    const cells = list.map(c => element("td", { class: c.look(r) || null }, c.text(r)));
    cells[0].prepend(dot(r.method));
    const kind = [r.label === view.chosen && "chosen", r.label === $("baseline").value && "base"].filter(Boolean).join(" ");
    return element("tr", { class: kind || null, "data-label": r.label, onclick: () => choose(r.label, true) }, ...cells);
  });
  $("table").replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
}
function fronts() {
  const metric = $("metric").value, { short } = view.study.costs.find(c => c.key === $("cost").value);
  const { headings, cells } = view.study.fronts;
  const line = (tag, texts) => element("tr", {}, ...texts.filter((_, i) => i < 1 || i > 2).map(text => element(tag, {}, text)));
  const own = cells.filter(c => c[1] === metric && c[2] === short);
  $("fronts-of").textContent = `${metric} against ${short}`;
  $("fronts").replaceChildren(element("thead", {}, line("th", headings)), element("tbody", {}, ...own.map(c => line("td", c))));
  for (const r of $("fronts").tBodies[0].rows) r.cells[0].prepend(dot(r.cells[0].textContent));
  const file = view.study.front, whole = (tag, texts) => element("tr", {}, ...texts.map(text => element(tag, {}, text)));
  $("file").hidden = !file;
  $("file-of").textContent = file?.label ?? "";
  if (file) $("file-points").replaceChildren(element("thead", {}, whole("th", file.headings)), element("tbody", {}, ...file.cells.map(c => whole("td", c))));
}
async function copy(button) {
  const text = view.study.copy[button.dataset.copy], label = button.textContent;
  try { await navigator.clipboard.writeText(text); } catch {
    const area = element("textarea", {}, text);
    document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
  }
  button.textContent = "copied";
  setTimeout(() => { button.textContent = label; }, 900);
}

/* the images */
const shownMethods = () => Object.keys(view.study.pictures.images).filter(label => !view.out.has(label));
function methods() {
  const labels = Object.keys(view.study.pictures.images);
  $("pictures").hidden = !labels.length;
  $("methods").replaceChildren(...labels.map(label => element("button", { "aria-pressed": !view.out.has(label),
    onclick: () => { view.out.delete(label) || view.out.add(label); methods(); grid(); } }, label)));
}
function grid() {
  const { images, captions } = view.study.pictures;
  $("grid").replaceChildren(...shownMethods().map(label => element("div", { class: "line", "data-label": label },
    element("b", {}, label), ...captions.map((caption, i) => images[label][i]
      ? element("button", { title: `${label}: ${caption}`, onclick: () => enlarge(i, label) }, element("img", { src: images[label][i], alt: `${label}: ${caption}` }))
      : element("span", { class: "none" })))));
}
function choose(label, look) {
  view.chosen = label;
  draw(); table();
  const line = $("grid").querySelector(`[data-label="${CSS.escape(label)}"]`);
  if (look && line) line.scrollIntoView({ behavior: "smooth", block: "center" });
}
function enlarge(picture, label) {
  const { images } = view.study.pictures, labels = Object.keys(images);
  const first = labels.includes($("baseline").value) && $("baseline").value !== label ? $("baseline").value : labels.find(x => x !== label) ?? label;
  options($("left-method"), labels.map(x => [x, x]), first);
  options($("right-method"), labels.map(x => [x, x]), label);
  view.picture = picture;
  if (!$("large").open) $("large").showModal();
  large();
}
function large() {
  const { images, captions } = view.study.pictures;
  $("caption").textContent = captions[view.picture];
  for (const side of ["left", "right"]) {
    const label = $(side + "-method").value, source = images[label][view.picture];
    $(side).hidden = !source;
    $(side).src = source ?? "";
    $(side).alt = `${label}: ${captions[view.picture]}`;
  }
  $("strip").replaceChildren(...Object.keys(images).filter(label => images[label][view.picture]).map(label => element("button", {
    title: label, "aria-pressed": label === $("right-method").value,
    onclick: () => { $("right-method").value = label; large(); } }, element("img", { src: images[label][view.picture], alt: label }))));
}
function step(by) {
  const count = view.study.pictures.captions.length;
  view.picture = (view.picture + by + count) % count;
  large();
}
function switchMethod(by) {
  const labels = Object.keys(view.study.pictures.images), now = labels.indexOf($("right-method").value);
  $("right-method").value = labels[(now + by + labels.length) % labels.length];
  large();
}

function show(index) {
  const study = view.study = studies[index];
  Object.assign(view, { hidden: new Set(), out: new Set(), chosen: null, sort: null });
  [...$("studies").children].forEach((tab, i) => tab.setAttribute("aria-pressed", i === index));
  $("facts").textContent = study.facts;
  options($("metric"), study.metrics.map(m => [m.name, m.name]), study.metrics[0].name);
  options($("cost"), study.costs.map(c => [c.key, c.label]), study.costs[0]?.key);
  options($("baseline"), study.rows.map(r => [r.label, r.label]), study.baseline);
  const made = Object.keys(study.pictures.images), steps = row(study.baseline).n;
  if (made.length > 8) view.out = new Set(made.filter(label => row(label) && row(label).n !== steps));
  legend(); draw(); table(); fronts(); methods(); grid();
}
if (studies.length > 1) {
  $("studies").append(...studies.map((study, i) => element("button", { onclick: () => show(i) }, study.name)));
}
if (problems.length) {
  $("problems").hidden = false;
  $("problems").querySelector("summary").textContent = `${problems.length} thing${problems.length > 1 ? "s" : ""} to know about the results files`;
  $("problems").querySelector("ul").append(...problems.map(text => element("li", {}, text)));
}
for (const id of ["metric", "cost", "log"]) $(id).onchange = () => { draw(); fronts(); };
for (const id of ["shown", "baseline"]) $(id).onchange = table;
for (const button of document.querySelectorAll("[data-copy]")) button.onclick = () => copy(button);
$("size").oninput = () => $("grid").style.setProperty("--size", $("size").value + "px");
$("left-method").onchange = $("right-method").onchange = large;
$("previous").onclick = () => step(-1);
$("next").onclick = () => step(1);
$("close").onclick = () => $("large").close();
$("large").onclick = event => { if (event.target === $("large")) $("large").close(); };
$("large").onkeydown = event => {
  if (event.target.tagName === "SELECT") return;
  const act = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => switchMethod(-1), ArrowDown: () => switchMethod(1) }[event.key];
  if (act) { act(); event.preventDefault(); }
};
show(0);
