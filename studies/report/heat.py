"""Cells of colour over two searched parameters, which may be words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memarch.studies.report.axes import Values
from memarch.studies.report.charts import HEAT, Canvas, element


def heat_map(
    values: Sequence[Values],
    cells: Mapping[tuple[int, ...], tuple[float, str]],
    scale: tuple[float, float],
    title: str,
) -> Canvas:
    """Cells at the values of two parameters, each with a median and the numbers of its trials."""
    across, down = values[0].cells(), values[1].cells()
    wide, tall = min(84, max(46, 360 // len(across))), 40
    left, top = 64, 30
    canvas = Canvas(left + wide * len(across) + 16, top + tall * len(down) + 48, left=left)
    canvas.text(left, 16, title, class_="ink strong")
    for column, words in enumerate(across):
        for row, name in enumerate(down):
            x, y = left + column * wide, top + (len(down) - 1 - row) * tall
            if column == 0:
                canvas.text(left - 8, y + tall / 2 + 4, name, anchor="end")
            found = cells.get((column, row))
            box = {"x": x + 1, "y": y + 1, "width": wide - 2, "height": tall - 2, "rx": 4}
            if found is None:
                canvas.add(element("rect", **box, class_="void"))
                continue
            level = _level(found[0], scale)
            canvas.add(element("rect", **box, class_=f"h{level}", data_t=found[1]))
            look = "on" if level >= 0.55 * HEAT else "ink"
            canvas.text(
                x + wide / 2, y + tall / 2 + 4, f"{found[0]:.3g}", anchor="middle", class_=look
            )
        base = top + tall * len(down)
        canvas.text(left + (column + 0.5) * wide, base + 18, words, anchor="middle")
    middle = left + wide * len(across) / 2
    canvas.text(middle, canvas.height - 8, values[0].name, anchor="middle")
    turned = top + tall * len(down) / 2
    canvas.text(
        14, turned, values[1].name, anchor="middle", transform=f"rotate(-90 14 {turned:.0f})"
    )
    return canvas


def _level(value: float, scale: tuple[float, float]) -> int:
    low, high = scale
    share = (value - low) / (high - low) if high > low else 0.5
    return min(HEAT - 1, max(0, int(share * HEAT)))
