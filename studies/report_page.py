"""The page of `studies.report`: its frame, its style and the script that sorts its tables."""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title><!--name--> - memarch</title>
<style>
<!--style-->
:root { --accent-soft: color-mix(in srgb, var(--c0) 10%, var(--surface)); }
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--surface); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 80px; }
.brand { color: var(--muted); font-size: 13px; letter-spacing: .04em; }
h1 { font-size: 30px; line-height: 1.2; margin: 2px 0 8px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 0 0 6px; }
section { margin-top: 44px; }
.question { font-size: 17px; max-width: 75ch; margin: 0 0 18px; }
.answer {
  background: var(--accent-soft); border-left: 3px solid var(--c0); border-radius: 0 8px 8px 0;
  padding: 14px 18px; margin: 20px 0 0; font-size: 16px; max-width: 85ch;
}
.facts { display: flex; flex-wrap: wrap; gap: 10px 34px; margin: 0; }
.facts dt { color: var(--muted); font-size: 12px; }
.facts dd { margin: 0; font-variant-numeric: tabular-nums; }
.note, figcaption { color: var(--muted); font-size: 13.5px; margin: 0 0 12px; max-width: 85ch; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; display: block; }
.multiples {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 18px;
}
.legend { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 0 0 8px; font-size: 13.5px; }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.legend svg, td.variant svg { width: 16px; height: 16px; flex: none; }
td.variant svg { vertical-align: -3px; margin-right: 6px; }
.scroll { overflow-x: auto; }
table {
  border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums;
}
th {
  text-align: left; font-weight: 600; color: var(--muted); font-size: 12.5px; cursor: pointer;
  border-bottom: 1px solid var(--muted); padding: 6px 14px 6px 0; white-space: nowrap;
}
th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; }
td { border-bottom: 1px solid var(--grid); padding: 6px 14px 6px 0; vertical-align: top; }
td.variant { white-space: nowrap; }
th.num, td.num { text-align: right; white-space: nowrap; }
td.strong { font-weight: 600; }
td.low { color: var(--muted); }
small { color: var(--muted); }
tr.baseline td { font-style: italic; }
tr.best td { background: var(--accent-soft); }
pre {
  background: color-mix(in srgb, var(--muted) 9%, var(--surface)); border-radius: 8px;
  padding: 12px 16px; overflow-x: auto; font: 12.5px/1.5 ui-monospace, Menlo, Consolas, monospace;
}
details { margin-top: 8px; }
summary { cursor: pointer; }
@media print { main { padding: 0; } details { display: none; } }
</style>
</head>
<body>
<main>
<header>
<div class="brand">memarch study</div>
<h1><!--name--></h1>
<!--question-->
<!--facts-->
<!--answer-->
</header>
<section>
<h2>Recall against state</h2>
<p class="note">Each mark is a trial. Ringed trials are the front: no other trial is as good with
less state. Dashed lines are floors, what a model without memory can reach. Hover for details.</p>
<!--legend-->
<figure><!--front--></figure>
</section>
<section>
<h2>Leaderboard</h2>
<!--leaderboard-->
</section>
<!--test-->
<!--curves-->
<!--costs-->
<!--failed-->
<section>
<h2>How to reproduce</h2>
<!--reproduce-->
</section>
</main>
<script>
for (const head of document.querySelectorAll("th")) {
  head.addEventListener("click", () => {
    const row = head.parentElement, body = head.closest("table").tBodies[0];
    const index = [...row.children].indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of row.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (line) => {
      const cell = line.children[index];
      const raw = cell.dataset.v ?? cell.textContent;
      return raw.trim() !== "" && !isNaN(raw) ? Number(raw) : raw;
    };
    const order = (a, b) => (typeof a === "number" && typeof b === "number")
      ? a - b : String(a).localeCompare(String(b));
    [...body.rows].sort((a, b) => (up ? 1 : -1) * order(value(a), value(b)))
      .forEach((line) => body.append(line));
  });
}
</script>
</body>
</html>
"""
