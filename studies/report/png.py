"""The report's pictures as PNG files: the SVG that `studies.charts` writes, drawn by matplotlib.

It knows the elements and the style that our pictures use, and no more of SVG. Colours are those of
the light page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from memarch.studies.report.charts import LIGHT_VARIABLES, RULES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.path import Path as Shape

SHARPNESS = 2
"""Pixels for each unit of a picture."""
_ANCHORS = {"start": "left", "middle": "center", "end": "right"}
_SELECTORS = [(selector.split("."), rule) for selector, rule in RULES.items()]


def write_png(path: Path, svg: str) -> None:
    """Draw one picture; a reader sees all of the file or none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    root = ElementTree.fromstring(svg)
    _, _, width, height = (float(number) for number in root.attrib["viewBox"].split())
    figure = Figure(figsize=(width / 72, height / 72), dpi=72 * SHARPNESS)
    canvas = FigureCanvasAgg(figure)
    figure.set_facecolor(LIGHT_VARIABLES["--surface"])
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for order, (element, look, shift) in enumerate(_elements(root, {}, (0.0, 0.0))):
        _draw(axes, element, look, shift, order + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        canvas.print_png(file)
    os.replace(temporary, path)


def _elements(
    node: ElementTree.Element, outer: Mapping[str, str], shift: tuple[float, float]
) -> Iterator[tuple[ElementTree.Element, dict[str, str], tuple[float, float]]]:
    """Every element with its style, what it inherits included, and how far it is moved."""
    for element in node:
        tag = element.tag.rpartition("}")[2]
        if tag == "g":
            moved = re.match(r"translate\(([-\d.]+) ([-\d.]+)\)", element.get("transform", ""))
            step = (float(moved[1]), float(moved[2])) if moved else (0.0, 0.0)
            inner = {key: element.attrib[key] for key in ("opacity",) if key in element.attrib}
            place = (shift[0] + step[0], shift[1] + step[1])
            yield from _elements(element, {**outer, **inner}, place)
        elif tag not in ("title", "style") and element.get("width") != "100%":
            yield element, {**outer, **_style(tag, element)}, shift


def _style(tag: str, element: ElementTree.Element) -> dict[str, str]:
    classes = set(element.get("class", "").split())
    look: dict[str, str] = {}
    for (known, *needed), rule in _SELECTORS:
        if known in ("", tag) and classes.issuperset(needed):
            look |= rule
    for name in ("opacity", "stroke", "fill", "stroke-width"):
        if element.get(name) is not None:
            look[name] = element.attrib[name]
    return look


def _draw(
    axes: Axes,
    element: ElementTree.Element,
    look: Mapping[str, str],
    shift: tuple[float, float],
    order: int,
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon

    tag = element.tag.rpartition("}")[2]
    number = {key: float(value) for key, value in element.attrib.items() if _is_number(value)}
    dx, dy = shift
    line: dict[str, Any] = {
        "color": _colour(look.get("stroke")),
        "linewidth": float(look.get("stroke-width", 1)),
        "alpha": float(look.get("opacity", 1)) * float(look.get("stroke-opacity", 1)),
        "zorder": order,
    }
    if look.get("stroke-dasharray"):
        dashes = tuple(float(part) for part in look["stroke-dasharray"].split())
        line["linestyle"] = (0, tuple(dash / line["linewidth"] for dash in dashes))
    area = {
        "facecolor": _colour(look.get("fill", "#000000")),
        "edgecolor": line["color"],
        "linewidth": line["linewidth"] if "stroke" in look else 0.0,
        "alpha": float(look.get("opacity", 1)),
        "zorder": order,
    }
    match tag:
        case "line":
            xs, ys = (number["x1"] + dx, number["x2"] + dx), (number["y1"] + dy, number["y2"] + dy)
            axes.add_line(Line2D(xs, ys, **line))
        case "polyline":
            points = _points(element.attrib["points"])
            xs, ys = zip(*[(x + dx, y + dy) for x, y in points], strict=True)
            axes.add_line(Line2D(xs, ys, **line))
        case "path":
            path = _path(element.attrib["d"], dx, dy)
            axes.add_patch(PathPatch(path, **{**area, "alpha": line["alpha"]}))
        case "circle":
            middle = (number.get("cx", 0) + dx, number.get("cy", 0) + dy)
            axes.add_patch(Circle(middle, number["r"], **area))
        case "polygon":
            corners = [(x + dx, y + dy) for x, y in _points(element.attrib["points"])]
            axes.add_patch(Polygon(corners, closed=True, **area))
        case "rect":
            corner = (number["x"] + dx, number["y"] + dy)
            style = f"round,pad=0,rounding_size={number.get('rx', 0)}"
            axes.add_patch(
                FancyBboxPatch(corner, number["width"], number["height"], boxstyle=style, **area)
            )
        case "text":
            turned = element.get("transform", "").startswith("rotate(-90")
            axes.text(
                number["x"] + dx,
                number["y"] + dy,
                (element.text or "").replace("$", r"\$"),
                fontsize=10.5,
                color=area["facecolor"],
                ha=_ANCHORS[element.get("text-anchor", "start")],
                va="baseline",
                rotation=90 if turned else 0,
                rotation_mode="anchor",
                fontweight="bold" if "font-weight" in look else "normal",
                zorder=order,
            )
        case _:
            raise ValueError(f"the pictures have no <{tag}>")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def _points(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]


def _path(text: str, dx: float, dy: float) -> Shape:
    """A path of M, L and Z, which is what contours are."""
    from matplotlib.path import Path as Shape

    corners: list[tuple[float, float]] = []
    codes = []
    for kind, rest in re.findall(r"([MLZ])([-\d.,]*)", text):
        x, y = (float(number) for number in rest.split(",")) if rest else (0.0, 0.0)
        corners.append((x + dx, y + dy))
        codes.append({"M": Shape.MOVETO, "L": Shape.LINETO, "Z": Shape.CLOSEPOLY}[kind])
    return Shape(corners, codes)


def _colour(text: str | None) -> str:
    """`#rrggbb` of a colour, a variable of the page, or a mixture of two."""
    if text is None or text == "none":
        return "none"
    mixed = re.fullmatch(r"color-mix\(in srgb,(.+) (\d+)%,(.+)\)", text)
    if mixed:
        share = int(mixed[2]) / 100
        pairs = zip(_rgb(_colour(mixed[1])), _rgb(_colour(mixed[3])), strict=True)
        return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)
    variable = re.fullmatch(r"var\((--[a-z0-9]+)\)", text)
    return LIGHT_VARIABLES[variable[1]] if variable else text


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
