{
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const closed of opened) closed.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
}
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const plot = document.getElementById("any");
  if (!plot || !data.arms.some(a => a.runs.some(r => r.length))) return;
  document.getElementById("explore").hidden = false;
  const [W, H, L, R, T, B] = [...(innerWidth < 640 ? [400, 320] : [720, 400]), 66, 16, 14, 46];
  plot.setAttribute("viewBox", `0 0 ${W} ${H}`);
  const pick = ["x", "y"].map(id => document.getElementById(id));
  pick.forEach((select, i) => {
    data.titles.forEach((title, j) => select.add(new Option(title, j)));
    select.value = data.start[i];
    select.addEventListener("change", draw);
  });
  const make = (name, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    plot.append(node);
    return node;
  };
  const ticks = (low, high) => {
    const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= raw);
    const out = [];
    for (let v = Math.ceil(low / step) * step; v <= high + 1e-9 * step; v += step) out.push(+v.toPrecision(10));
    return out;
  };
  function range(values) {
    let [low, high] = [Math.min(...values), Math.max(...values)];
    const margin = 0.06 * (high - low) || Math.abs(high) * 0.05 || 0.5;
    return [low - margin, high + margin];
  }
  function draw() {
    const [x, y] = pick.map(s => +s.value);
    const runs = data.arms.flatMap(arm => arm.runs.map(rows => ({arm, points: rows.filter(r => r[x] !== null && r[y] !== null)})));
    const all = runs.flatMap(r => r.points);
    plot.replaceChildren();
    const words = `${data.titles[y]} against ${data.titles[x]}, ${all.length} points`;
    make("title", {id: "any-title"}, words);
    if (!all.length) { make("text", {x: W / 2, y: H / 2, "text-anchor": "middle"}, "no values"); return; }
    const [x0, x1] = range(all.map(r => r[x])), [y0, y1] = range(all.map(r => r[y]));
    const px = v => L + (v - x0) / (x1 - x0) * (W - L - R), py = v => H - B - (v - y0) / (y1 - y0) * (H - T - B);
    for (const t of ticks(x0, x1)) {
      make("line", {x1: px(t), x2: px(t), y1: T, y2: H - B, stroke: "#e6e6e6"});
      make("text", {x: px(t), y: H - B + 16, "text-anchor": "middle"}, t);
    }
    for (const t of ticks(y0, y1)) {
      make("line", {x1: L, x2: W - R, y1: py(t), y2: py(t), stroke: "#e6e6e6"});
      make("text", {x: L - 6, y: py(t) + 4, "text-anchor": "end"}, t);
    }
    make("text", {x: (L + W - R) / 2, y: H - 8, "text-anchor": "middle"}, data.titles[x]);
    make("text", {x: -(T + H - B) / 2, y: 14, "text-anchor": "middle", transform: "rotate(-90)"}, data.titles[y]);
    for (const {arm, points} of runs) {
      make("polyline", {points: points.map(r => `${px(r[x])},${py(r[y])}`).join(" "), fill: "none", stroke: arm.colour, "stroke-width": 2, "stroke-dasharray": arm.dash, "stroke-opacity": 0.35});
      for (const r of points) {
        const dot = make("path", {class: "dot", d: arm.marker, transform: `translate(${px(r[x])} ${py(r[y])})`, fill: arm.colour});
        dot.append(make("title", {}, `${arm.label}, generation ${r[0]}: ${r[x]}, ${r[y]}`));
      }
    }
  }
  draw();
})();
{
  const watch = new ResizeObserver(seen => {
    for (const {target} of seen) target.classList.toggle("scrolls", target.scrollWidth > target.clientWidth + 1);
  });
  for (const one of document.querySelectorAll(".wide")) watch.observe(one);
}
