"""Horizontal bars: what share of the outcome each searched parameter decides."""

from __future__ import annotations

from collections.abc import Mapping

from memarch.studies.report.charts import CHARACTER, Canvas, element
from memarch.studies.report.records import Records
from memarch.studies.results.importance import ALL

MOST_BARS = 10
ROW = 24


def importance_bars(
    records: Records, shares: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, str]]:
    """A small chart for each group of trials, the most important parameter first."""
    return [(group, _bars(records, group, own)) for group, own in shares.items()]


def _bars(records: Records, group: str, shares: Mapping[str, float]) -> str:
    rows = sorted(shares.items(), key=lambda item: -item[1])[:MOST_BARS]
    left = int(12 + CHARACTER * max(len(name) for name, _ in rows))
    canvas = Canvas(max(340, left + 180), 34 + ROW * len(rows), left=left, right=52)
    canvas.text(6, 16, group, class_="ink strong")
    colour = "x" if group == ALL or group not in records.variants else records.colour(group)
    room = canvas.width - canvas.right - left
    for index, (name, share) in enumerate(rows):
        y = 30 + ROW * index
        canvas.text(left - 8, y + 12, name, anchor="end")
        box = {"x": left, "y": y, "height": ROW - 8, "rx": 3}
        canvas.add(element("rect", **box, width=room, class_="track"))
        canvas.add(element("rect", **box, width=max(1.0, room * share), class_=f"c{colour}"))
        canvas.text(left + room + 8, y + 12, f"{share:.0%}", class_="ink")
    return canvas.svg(f"importance of parameters, {group}")
