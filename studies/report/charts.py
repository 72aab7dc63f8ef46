"""Charts as plain SVG text: points, steps and lines on two axes, readable in light and in dark.

Colours are classes (`c0` to `c7` for series, `ink`, `muted`, `grid`), so that a page or a
stand-alone file gives them values by `STYLE` and switches with the reader's colour scheme.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

LIGHT = ("#2a78d6", "#d9581f", "#138a5e", "#b07a00", "#c2487f", "#5b4bc4", "#007d8a", "#8a5a2b")
DARK = ("#5b9df0", "#f08a55", "#3fc493", "#e0b040", "#ee86b5", "#a096f5", "#45c2cf", "#cf9f6d")

_LIGHT_INK = {
    "surface": "#ffffff",
    "ink": "#1d2330",
    "muted": "#5f6b80",
    "grid": "#e6e9ef",
}
_DARK_INK = {
    "surface": "#12161d",
    "ink": "#e8ecf3",
    "muted": "#97a2b4",
    "grid": "#2a313d",
}
LIGHT_VARIABLES = {f"--{name}": value for name, value in _LIGHT_INK.items()} | {
    f"--c{index}": colour for index, colour in enumerate(LIGHT)
}


def _variables(ink: dict[str, str], colours: Sequence[str]) -> str:
    named = {f"--{name}": value for name, value in ink.items()}
    named |= {f"--c{index}": colour for index, colour in enumerate(colours)}
    return "".join(f"{name}:{value};" for name, value in named.items())


HEAT = 10
"""Steps of the scale of a heat map: classes `h0` to `h9`."""

RULES: dict[str, dict[str, str]] = {
    "text": {"fill": "var(--muted)"},
    "text.ink": {"fill": "var(--ink)"},
    "text.strong": {"font-weight": "600"},
    "text.on": {"fill": "var(--surface)"},
    ".grid": {"stroke": "var(--grid)", "stroke-width": "1"},
    ".axis": {"stroke": "var(--muted)", "stroke-width": "1"},
    ".floor": {"stroke": "var(--muted)", "stroke-width": "1.2", "stroke-dasharray": "5 4"},
    ".front": {
        "fill": "none",
        "stroke": "var(--ink)",
        "stroke-width": "1.6",
        "stroke-opacity": ".55",
    },
    ".curve": {"fill": "none", "stroke-width": "1.6", "stroke-linejoin": "round"},
    **{f".c{i}": {"fill": f"var(--c{i})"} for i in range(8)},
    **{f".s{i}": {"stroke": f"var(--c{i})"} for i in range(8)},
    ".cx": {"fill": "var(--muted)"},
    ".sx": {"stroke": "var(--muted)"},
    ".mark": {"stroke": "var(--surface)", "stroke-width": "1.2"},
    ".mark.hollow": {"fill": "var(--surface)", "stroke-width": "2"},
    **{f".mark.hollow.s{i}": {"stroke": f"var(--c{i})"} for i in range(8)},
    ".mark.hollow.sx": {"stroke": "var(--muted)"},
    ".ring": {"fill": "none", "stroke": "var(--ink)", "stroke-width": "1.4"},
    ".whisker": {"stroke-width": "1.8"},
    ".middle": {"stroke": "var(--ink)", "stroke-width": "2", "stroke-opacity": ".7"},
    ".track": {"fill": "var(--grid)"},
    **{
        f".h{i}": {
            "fill": f"color-mix(in srgb,var(--c0) {10 + 90 * i // (HEAT - 1)}%,var(--surface))"
        }
        for i in range(HEAT)
    },
    ".chip": {"stroke": "var(--muted)", "stroke-width": "1.2"},
    ".dark": {"fill": "var(--ink)"},
    ".contour": {"fill": "none", "stroke": "var(--ink)", "stroke-opacity": ".45"},
    ".void": {"fill": "none", "stroke": "var(--grid)"},
}
"""What the classes mean: the page's style, and what `studies.png` draws by."""

STYLE = (
    f":root{{color-scheme:light dark;{_variables(_LIGHT_INK, LIGHT)}}}"
    f"@media(prefers-color-scheme:dark){{:root{{{_variables(_DARK_INK, DARK)}}}}}"
    f":root[data-theme=light]{{color-scheme:light;{_variables(_LIGHT_INK, LIGHT)}}}"
    f":root[data-theme=dark]{{color-scheme:dark;{_variables(_DARK_INK, DARK)}}}"
    "svg text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}"
    + "".join(
        f"svg {selector}{{{';'.join(f'{key}:{value}' for key, value in rule.items())}}}"
        for selector, rule in RULES.items()
    )
)

CHARACTER = 7.2
"""Width of a character of a label, about."""


@dataclass(frozen=True)
class Scale:
    """From values to positions, linearly or by the binary logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, here = (self._bent(v) for v in (self.low, self.high, value))
        share = (here - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def _bent(self, value: float) -> float:
        return math.log2(value) if self.log else value


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values that cover the interval, about `count` of them."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def power_ticks(low: float, high: float, count: int = 7) -> list[float]:
    """Powers of two that cover the interval, at most about `count` of them."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    first, last = (first - 1, last + 1) if first == last else (first, last)
    stride = max(1, math.ceil((last - first) / count))
    last = first + stride * math.ceil((last - first) / stride)
    return [2.0**power for power in range(first, last + 1, stride)]


def decade_ticks(low: float, high: float, count: int = 7) -> list[float]:
    """1, 2 and 5 times powers of ten that cover the interval; powers alone where it is long."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    if last - first > 2:
        stride = max(1, math.ceil((last - first) / count))
        last = first + stride * math.ceil((last - first) / stride)
        return [10.0**power for power in range(first, last + 1, stride)]
    ticks = [m * 10.0**power for power in range(first, last) for m in (1, 2, 5)] + [10.0**last]
    start = max(tick for tick in ticks if tick <= low * (1 + 1e-9))
    end = min(tick for tick in ticks if tick >= high * (1 - 1e-9))
    return [tick for tick in ticks if start <= tick <= max(end, 2 * start)]


def tick_text(value: float) -> str:
    """A tick's label: `0.5`, `1,500`, `20k`."""
    if abs(value) >= 10_000:
        for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:g}{unit}"
    return f"{value:,.10g}"


def element(name: str, content: str = "", /, **attributes: object) -> str:
    """`<name a="1">content</name>`; `class_` is class, other underscores are hyphens."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{given}>{content}</{name}>" if content else f"<{name}{given}/>"


def _attribute(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return escape(str(value))


def marker(shape: int, x: float, y: float, size: float = 5.5, /, **attributes: object) -> str:
    """One of five shapes, so that series differ in more than colour."""
    x, y = round(x, 1), round(y, 1)
    if shape % 5 == 0:
        return element("circle", cx=x, cy=y, r=size, **attributes)
    corners = {
        1: [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
        2: [(0, -1.15), (1.05, 0.8), (-1.05, 0.8)],
        3: [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        4: [(0, 1.15), (1.05, -0.8), (-1.05, -0.8)],
    }[shape % 5]
    points = " ".join(f"{x + size * a:.1f},{y + size * b:.1f}" for a, b in corners)
    return element("polygon", points=points, **attributes)


def words(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    class_: str | None = None,
    transform: str | None = None,
) -> str:
    """Text as it is."""
    shown = escape(text, quote=False)
    return element("text", shown, x=x, y=y, text_anchor=anchor, class_=class_, transform=transform)


@dataclass
class Axis:
    """What the page's script needs to label a part of an axis: the name of what it shows, its
    scale, and labels that stand at places of their own."""

    name: str = ""
    scale: Scale | None = None
    places: Sequence[tuple[float, str]] = ()

    def document(self) -> dict[str, object]:
        scale = self.scale
        known = scale and [scale.low, scale.high, round(scale.start, 1), round(scale.end, 1)]
        log = scale is not None and scale.log
        places = [[round(at, 1), label] for at, label in self.places]
        return {"name": self.name, "scale": known, "log": log, "places": places}


@dataclass
class Canvas:
    """A chart being drawn: a frame with two axes, and a plot, which the page can zoom.

    Lines and polylines of the plot stand in the canvas's coordinates; what keeps its size stands
    around a point, in a group that is moved there.
    """

    width: int
    height: int
    left: int = 56
    right: int = 18
    top: int = 14
    bottom: int = 46
    parts: list[str] = field(default_factory=list)
    plot: list[str] = field(default_factory=list)
    axes: dict[str, Axis] = field(default_factory=dict)
    """`x` and `y`, where the chart can be zoomed."""
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Boxes of the labels so far."""

    def add(self, *parts: str) -> None:
        self.parts.extend(parts)

    def draw(self, *parts: str) -> None:
        """Add to the plot."""
        self.plot.extend(parts)

    def around(self, x: float, y: float, content: str, /, **attributes: object) -> None:
        """Add to the plot what was drawn around 0, 0, at a point."""
        self.draw(element("g", content, **attributes, transform=f"translate({x:.2f} {y:.2f})"))

    def y_axis(self, scale: Scale, ticks: Sequence[float], title: str = "") -> None:
        """Horizontal grid lines with their values, and the title above them, turned."""
        x0, x1 = self.left, self.width - self.right
        lines = []
        for tick in ticks:
            y = scale(tick)
            lines.append(element("line", x1=x0, x2=x1, y1=y, y2=y, class_="grid"))
            lines.append(words(x0 - 8, y + 4, tick_text(tick), anchor="end"))
        self.add(element("g", "".join(lines), class_="ticks-y"))
        if title:
            middle = (scale.start + scale.end) / 2
            turned = f"rotate(-90 14 {middle:.0f})"
            self.text(14, middle, title, anchor="middle", transform=turned)

    def x_axis(self, ticks: Sequence[tuple[float, str]], title: str = "") -> None:
        """A base line with labels at positions."""
        base = self.height - self.bottom
        self.add(
            element(
                "line", x1=self.left, x2=self.width - self.right, y1=base, y2=base, class_="axis"
            )
        )
        lines = []
        for x, label in ticks:
            lines.append(element("line", x1=x, x2=x, y1=base, y2=base + 4, class_="axis"))
            lines.append(words(x, base + 18, label, anchor="middle"))
        self.add(element("g", "".join(lines), class_="ticks-x"))
        if title:
            middle = (self.left + self.width - self.right) / 2
            self.text(middle, self.height - 8, title, anchor="middle")

    def text(self, x: float, y: float, text: str, **look: str) -> None:
        """Add text to the frame, with the looks of `words`."""
        self.add(words(x, y, text, **look))

    def label(self, x: float, y: float, text: str, class_: str = "ink") -> None:
        """Text beside a point, where no other label is; nothing where there is no room."""
        width = CHARACTER * len(text)
        places = [
            (x - width / 2, y - 15),
            (x + 14, y + 4),
            (x + 14, y + 20),
            (x - 6, y - 15),
            (x - width - 14, y + 4),
            (x - width - 14, y + 20),
            (x - width / 2, y + 24),
        ]
        for left, base in places:
            box = (left, base - 10, left + width, base + 3)
            inside = box[0] >= self.left and box[2] <= self.width - 4 and box[1] >= 0
            inside = inside and box[3] <= self.height - self.bottom
            if inside and not any(_overlap(box, other) for other in self.taken):
                self.taken.append(box)
                self.around(x, y, words(left - x, base - y, text, class_=class_))
                return

    def occupy(self, x: float, y: float, size: float = 8) -> None:
        """Keep labels away from a mark."""
        self.taken.append((x - size, y - size, x + size, y + size))

    def svg(self, title: str, *, standalone: bool = False, sized: bool = False) -> str:
        """The whole chart: by itself with its style, or for a page, as wide as its place is."""
        style = f"<style>{STYLE}</style>" if standalone else ""
        surface = ""
        if standalone:
            surface = '<rect width="100%" height="100%" fill="var(--surface)" rx="8"/>'
        body = f"<title>{escape(title)}</title>{style}{surface}{self.content()}"
        size = f'width="{self.width}" height="{self.height}"' if standalone or sized else ""
        zoom = "" if standalone or not self.axes else f'data-zoom="{escape(self._zoom())}" '
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'{size} {zoom}role="img" aria-label="{escape(title)}">{body}</svg>'
        )

    def content(self) -> str:
        """The frame, and the plot on it."""
        plot = element("g", "".join(self.plot), class_="plot") if self.plot else ""
        return "".join(self.parts) + plot

    def _zoom(self) -> str:
        box = [self.left, self.top, self.width - self.right, self.height - self.bottom]
        axes = {name: axis.document() for name, axis in self.axes.items()}
        return json.dumps({"box": box, **axes}, separators=(",", ":"))


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
