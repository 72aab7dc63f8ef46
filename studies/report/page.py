"""The page of the report: its frame and its style."""

from __future__ import annotations

from memarch.studies.report.script import SCRIPT

_STYLE = """
:root { --accent-soft: color-mix(in srgb, var(--c0) 9%, var(--surface));
  --raised: color-mix(in srgb, var(--ink) 3%, var(--surface)); }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 64px; }
body {
  margin: 0; background: var(--surface); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 1160px; margin: 0 auto; padding: 36px 24px 96px; }
.top { display: flex; justify-content: space-between; align-items: center; }
.brand { color: var(--muted); font-size: 13px; letter-spacing: .04em; }
h1 { font-size: 32px; line-height: 1.2; margin: 2px 0 8px; letter-spacing: -.015em; }
h2 { font-size: 20px; margin: 0 0 6px; letter-spacing: -.005em; }
h3 { font-size: 14px; margin: 18px 0 6px; }
section { margin-top: 48px; }
.question { font-size: 18px; max-width: 72ch; margin: 0 0 18px; }
.answer {
  background: var(--accent-soft); border-left: 3px solid var(--c0); border-radius: 0 10px 10px 0;
  padding: 14px 18px; margin: 20px 0 0; font-size: 16px; max-width: 88ch;
}
.facts { display: flex; flex-wrap: wrap; gap: 10px 34px; margin: 0; }
.facts dt { color: var(--muted); font-size: 12px; }
.facts dd { margin: 0; font-variant-numeric: tabular-nums; }
.note, figcaption { color: var(--muted); font-size: 13.5px; margin: 0 0 12px; max-width: 88ch; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin-top: 18px; font-size: 13.5px; }
nav a { color: var(--muted); text-decoration: none; border-bottom: 1px solid var(--grid); }
nav a:hover { color: var(--ink); }
figure { margin: 0; position: relative; }
figure > svg { width: 100%; height: auto; display: block; }
.wide { max-width: 900px; }
.multiples {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 20px;
}
.multiples.fit { display: flex; flex-wrap: wrap; align-items: flex-start; }
.multiples.fit figure > svg { width: auto; max-width: 100%; height: auto; }
button { font: inherit; color: inherit; background: none; border: 0; cursor: pointer; padding: 0; }
button:focus-visible, a:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }
.legend {
  position: sticky; top: 0; z-index: 5; display: flex; flex-wrap: wrap; gap: 6px; padding: 10px 0;
  margin-top: 24px; background: var(--surface); border-bottom: 1px solid var(--grid);
  font-size: 13.5px; align-items: center;
}
.legend button {
  display: inline-flex; align-items: center; gap: 6px; padding: 3px 10px 3px 7px;
  border: 1px solid var(--grid); border-radius: 99px;
}
.legend button[aria-pressed=false] { opacity: .4; text-decoration: line-through; }
.legend svg { width: 16px; height: 16px; flex: none; }
.legend .hint { color: var(--muted); margin-left: 6px; font-size: 12.5px; }
.bar { display: flex; flex-wrap: wrap; gap: 6px; margin: 0 0 12px; font-size: 13.5px; }
.bar button, .more, #theme {
  padding: 3px 12px; border-radius: 99px; border: 1px solid var(--grid); color: var(--muted);
}
.bar button[aria-selected=true] {
  background: var(--ink); border-color: var(--ink); color: var(--surface);
}
.more { margin-top: 10px; font-size: 13px; }
#theme { font-size: 12.5px; }
[hidden], .off { display: none !important; }
svg[data-zoom] { cursor: crosshair; user-select: none; }
svg .drag { fill: var(--c0); fill-opacity: .12; stroke: var(--c0); }
.again {
  position: absolute; right: 0; bottom: -9px; padding: 1px 10px; font-size: 12px;
  border: 1px solid var(--grid); border-radius: 99px;
  background: var(--surface); color: var(--muted);
}
[data-t] { cursor: pointer; }
svg .picked, svg .picked .mark { stroke: var(--ink); stroke-width: 2.6; opacity: 1; }
.dot {
  display: inline-block; width: 9px; height: 9px; border-radius: 3px; margin-right: 7px;
  background: var(--dot);
}
.scroll { overflow-x: auto; }
table {
  border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums;
}
th {
  text-align: left; font-weight: 600; color: var(--muted); font-size: 12.5px; cursor: pointer;
  border-bottom: 1px solid var(--muted); padding: 6px 14px 6px 0; vertical-align: bottom;
}
th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; }
td { border-bottom: 1px solid var(--grid); padding: 6px 14px 6px 0; vertical-align: top; }
td.variant { white-space: nowrap; }
th.num, td.num { text-align: right; }
td.num { white-space: nowrap; }
td.strong { font-weight: 600; }
td.low { color: var(--muted); }
small { color: var(--muted); }
tr.baseline td { font-style: italic; }
tr.best td { background: var(--accent-soft); }
tr.picked td { background: color-mix(in srgb, var(--c3) 18%, var(--surface)); }
tbody tr:hover td { background: var(--raised); }
#tip, #card {
  position: fixed; z-index: 10; max-width: 340px; background: var(--surface); color: var(--ink);
  border: 1px solid var(--grid); border-radius: 10px; padding: 10px 14px; font-size: 12.5px;
  box-shadow: 0 6px 28px rgb(0 0 0 / .18); line-height: 1.4;
}
#tip { pointer-events: none; }
#card { right: 18px; bottom: 18px; max-height: 70vh; overflow: auto; min-width: 260px; }
#card button { position: sticky; top: 0; float: right; font-size: 18px; line-height: 1; }
#tip p, #card p { margin: 2px 0; color: var(--muted); }
#tip dl, #card dl { margin: 4px 0 6px; }
#tip dl div, #card dl div { display: flex; justify-content: space-between; gap: 16px; }
#tip dt, #card dt { color: var(--muted); overflow-wrap: anywhere; }
#tip dd, #card dd { margin: 0; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre {
  background: color-mix(in srgb, var(--muted) 9%, var(--surface)); border-radius: 8px;
  padding: 12px 16px; overflow-x: auto; font: 12.5px/1.5 ui-monospace, Menlo, Consolas, monospace;
}
details { margin-top: 8px; }
summary { cursor: pointer; }
@media print {
  main { padding: 0; }
  details, .legend .hint, .bar, #theme, nav, .again { display: none; }
  .legend { position: static; }
}
"""

PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title><!--name--> - memarch</title>
<style>
<!--style-->
{_STYLE}</style>
</head>
<body>
<main>
<header>
<div class="top"><span class="brand">memarch study</span>
<button id="theme">light / dark</button></div>
<h1><!--name--></h1>
<!--question-->
<!--facts-->
<!--answer-->
<!--contents-->
</header>
<!--legend-->
<!--sections-->
</main>
<div id="tip" role="status" hidden></div>
<aside id="card" hidden></aside>
<script type="application/json" id="data"><!--data--></script>
<script>{SCRIPT}</script>
</body>
</html>
"""
