"""The part of the page's script that zooms charts.

A chart says by `data-zoom` where its plot is and what its axes mean. Only positions are changed:
marks, lines and words keep their size, ticks are made anew for what is in sight.
"""

from __future__ import annotations

ZOOM = r"""
// Zoom: drag a rectangle, or turn the wheel with Ctrl; a double click or the button shows all.
const MOST = 40, LEAST_DRAG = 6;
const draw = (tag, attributes, parent, words = "") => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = words;
  parent.append(made);
  return made;
};
const evenly = (low, high, bytes) => {
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = bytes ? 2 ** Math.ceil(Math.log2(raw))
    : [1, 2, 5, 10].map((many) => many * power).find((size) => size >= raw * 0.999);
  const values = [];
  for (let n = Math.ceil(low / step - 1e-9); n <= high / step + 1e-9; n += 1) values.push(n * step);
  return [values, step];
};
const powers = (low, high, bytes) => {
  const base = bytes ? 2 : 10, values = [];
  for (let n = Math.floor(Math.log(low) / Math.log(base)); base ** n <= high; n += 1) {
    (bytes ? [1] : [1, 2, 5]).forEach((many) => values.push(many * base ** n));
  }
  const inside = values.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  if (inside.length < 10) return inside;
  const round = inside.filter((value) => bytes || Number.isInteger(Math.log10(value)));
  return round.filter((_, index) => index % Math.ceil(round.length / 9) === 0);
};
// The labels of an axis between two places of the whole chart, each with its place there.
const labels = (axis, from, to) => {
  const found = axis.places.filter(([at]) => at >= from && at <= to);
  if (!axis.scale) return found;
  const [low, high, start, end] = axis.scale, bytes = axis.name.endsWith("_bytes");
  const value = (at) => {
    const share = (at - start) / (end - start);
    return axis.log ? low * (high / low) ** share : low + (high - low) * share;
  };
  const place = (here) => start + (end - start) * (axis.log
    ? Math.log(here / low) / Math.log(high / low) : (here - low) / (high - low));
  const first = Math.max(from, Math.min(start, end)), last = Math.min(to, Math.max(start, end));
  if (first >= last) return found;
  const [small, large] = [value(first), value(last)].sort((a, b) => a - b);
  let [values, step] = [axis.log ? powers(small, large, bytes) : [], 0];
  if (values.length < 3) [values, step] = evenly(small, large, bytes);
  const digits = (here) => Math.max(3, step && Math.ceil(Math.log10(Math.abs(here) / step)) + 1);
  return found.concat(values.map((here) => [place(here), shown(axis.name, here, digits(here))]));
};
const between = (value, low, high) => Math.min(high, Math.max(low, value));

const zoomable = (svg) => {
  const {box: [left, top, right, bottom], x, y} = JSON.parse(svg.dataset.zoom);
  const whole = {x: [left, right], y: [top, bottom]};
  const plot = svg.querySelector(".plot"), [across, up] = all(".ticks-x, .ticks-y", svg).reverse();
  const untouched = [across.innerHTML, up.innerHTML];
  const frame = draw("svg", {x: left, y: top, width: right - left, height: bottom - top,
    viewBox: [left, top, right - left, bottom - top].join(" "), overflow: "visible"}, svg);
  frame.append(plot);
  const again = element("button", "show all", svg.parentElement);
  again.className = "again";
  again.hidden = true;
  let view = whole;

  const moved = ([low, high], [from, to]) => (at) => from + (to - from) * (at - low) / (high - low);
  const movers = [...plot.children].map((node) => {
    if (node.tagName === "polyline") {
      const points = node.getAttribute("points").split(" ").map((pair) => pair.split(","));
      return (fx, fy) => node.setAttribute("points",
        points.map(([a, b]) => fx(a).toFixed(1) + "," + fy(b).toFixed(1)).join(" "));
    }
    if (node.tagName === "line") {
      const at = Number(node.getAttribute("y1"));
      return (fx, fy) => ["y1", "y2"].forEach((name) => node.setAttribute(name, fy(at)));
    }
    const {e, f} = node.transform.baseVal[0].matrix, side = node.classList.contains("side");
    const ends = all("line", node).flatMap((line) =>
      ["y1", "y2"].map((name) => [line, name, Number(line.getAttribute(name))]));
    return (fx, fy) => {
      node.setAttribute("transform", "translate(" + (side ? e : fx(e)) + " " + fy(f) + ")");
      ends.forEach(([line, name, far]) => line.setAttribute(name, fy(f + far) - fy(f)));
    };
  });
  const show = (wanted) => {
    view = wanted;
    const fx = moved(view.x, whole.x), fy = moved(view.y, whole.y);
    movers.forEach((move) => move(fx, fy));
    again.hidden = view === whole;
    frame.setAttribute("overflow", again.hidden ? "visible" : "hidden");
    [across.innerHTML, up.innerHTML] = untouched;
    if (again.hidden) return;
    across.replaceChildren();
    up.replaceChildren();
    let free = -Infinity;
    for (const [at, words] of labels(x, ...view.x)) {
      const half = words.length * 3.6;
      if (fx(at) - half < free) continue;
      free = fx(at) + half + 6;
      draw("line", {x1: fx(at), x2: fx(at), y1: bottom, y2: bottom + 4, class: "axis"}, across);
      draw("text", {x: fx(at), y: bottom + 18, "text-anchor": "middle"}, across, words);
    }
    for (const [at, words] of labels(y, ...view.y)) {
      draw("line", {x1: left, x2: right, y1: fy(at), y2: fy(at), class: "grid"}, up);
      draw("text", {x: left - 8, y: fy(at) + 4, "text-anchor": "end"}, up, words);
    }
  };
  // Charts on the same axes, side by side, show the same part.
  const zoom = (wanted) => {
    const many = svg.closest(".multiples");
    const same = charts.filter((one) => one.svg === svg || (many && many.contains(one.svg)
      && one.svg.dataset.zoom === svg.dataset.zoom));
    same.forEach((one) => one.show(wanted));
  };
  const narrowed = (ends, [low, high]) => {
    const [a, b] = ends.map((end) => between(end, low, high));
    const spare = Math.max(0, (high - low) / MOST - (b - a)) / 2;
    const from = between(a - spare, low, high - (high - low) / MOST);
    return [from, Math.max(b + spare, from + (high - low) / MOST)];
  };
  const set = (wanted) => {
    const ends = {x: narrowed(wanted.x, whole.x), y: narrowed(wanted.y, whole.y)};
    const open = ["x", "y"].every((name) => ends[name].every((end, i) => end === whole[name][i]));
    zoom(open ? whole : ends);
  };
  const reset = () => zoom(whole);
  again.addEventListener("click", reset);
  svg.addEventListener("dblclick", reset);

  const pointer = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(svg.getScreenCTM().inverse());
    return [between(at.x, left, right), between(at.y, top, bottom)];
  };
  const seen = ([px, py]) => [moved(whole.x, view.x)(px), moved(whole.y, view.y)(py)];
  let start = null, mark = null, dragged = false;
  const drag = (event) => {
    const here = pointer(event), size = here.map((at, i) => Math.abs(at - start[i]));
    if (!dragged && Math.max(...size) < LEAST_DRAG) return;
    mark = mark || draw("rect", {class: "drag"}, svg);
    dragged = true;
    const [wide, tall] = size.map((length) => length >= LEAST_DRAG);
    mark.setAttribute("x", wide ? Math.min(start[0], here[0]) : left);
    mark.setAttribute("y", tall ? Math.min(start[1], here[1]) : top);
    mark.setAttribute("width", wide ? size[0] : right - left);
    mark.setAttribute("height", tall ? size[1] : bottom - top);
  };
  const stop = (event) => {
    for (const [kind, act] of during) document.removeEventListener(kind, act);
    if (!mark) return;
    const [px, py, wide, tall] = ["x", "y", "width", "height"]
      .map((name) => Number(mark.getAttribute(name)));
    mark.remove();
    mark = null;
    if (event.type === "pointercancel") return;
    const [[x0, y0], [x1, y1]] = [seen([px, py]), seen([px + wide, py + tall])];
    set({x: [x0, x1], y: [y0, y1]});
  };
  const during = [["pointermove", drag], ["pointerup", stop], ["pointercancel", stop]];
  svg.addEventListener("pointerdown", (event) => {
    dragged = false;
    if (event.button !== 0 || event.pointerType === "touch") return;
    start = pointer(event);
    for (const [kind, act] of during) document.addEventListener(kind, act);
  });
  svg.addEventListener("click", (event) => { if (dragged) event.stopPropagation(); }, true);
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const factor = 1.01 ** between(event.deltaY, -30, 30), [px, py] = seen(pointer(event));
    const about = (middle, ends) => ends.map((end) => middle + (end - middle) * factor);
    set({x: about(px, view.x), y: about(py, view.y)});
  }, {passive: false});
  return {svg, show};
};
const charts = all("svg[data-zoom]").filter((svg) => svg.querySelector(".plot")).map(zoomable);
"""
