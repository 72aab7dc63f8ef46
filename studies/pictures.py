"""The pictures of a study's report, and the records that they and the page are made from.

Everything comes from the JSON files in the study's folder, so any process can draw it at any time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from memarch.studies import leaderboard as board
from memarch.studies.charts import (
    CHARACTER,
    Canvas,
    Scale,
    element,
    marker,
    nice_ticks,
    power_ticks,
    tick_text,
)
from memarch.studies.store import StudyFolder, read_json, show_study

Trial = Mapping[str, Any]
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Records:
    """What the page is made from."""

    folder: Path

    @cached_property
    def document(self) -> dict[str, Any]:
        return show_study(self.folder.name, self.folder.parent.parent)

    @cached_property
    def study(self) -> StudyFolder:
        return StudyFolder(self.folder.parent.parent, self.folder.name)

    @cached_property
    def info(self) -> dict[str, Any]:
        return self.study.info

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The section `study`, with defaults."""
        return dict((read_json(self.folder / "resolved.json") or {}).get("study") or {})

    @property
    def trials(self) -> list[Trial]:
        return list(self.document["trials"])

    @cached_property
    def metric(self) -> str:
        return board.main_objective(self.document)[0]

    @cached_property
    def floors(self) -> dict[str, float]:
        return board.floors(self.trials, self.metric)

    @cached_property
    def source(self) -> str:
        path = self.folder / "study.yaml"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    @cached_property
    def question(self) -> str:
        """`study.question`, else the comment that opens the file, up to its first empty line."""
        if self.settings.get("question"):
            return str(self.settings["question"])
        words = []
        for line in self.source.splitlines():
            if not line.startswith("#") or not line.strip("# "):
                break
            words.append(line.strip("# "))
        return " ".join(words)

    @cached_property
    def variants(self) -> list[str]:
        """In the order of the first trial of each; baselines last."""
        names = dict.fromkeys(trial["variant"] or "" for trial in self.trials)
        return sorted(names, key=lambda name: name in board.BASELINES)

    def colour(self, variant: str) -> str:
        """The colour's class suffix: `x` for baselines."""
        if variant in board.BASELINES:
            return "x"
        return str([v for v in self.variants if v not in board.BASELINES].index(variant) % 8)

    def shape(self, variant: str) -> int:
        return self.variants.index(variant)

    def curve(self, trial: Trial) -> Curve:
        """(step, objective) over training; of several attempts the last word on each step."""
        points = {
            float(line["step"]): float(line["metrics"][self.metric])
            for line in self.study.trial(trial["number"]).progress()
            if line.get("metrics", {}).get(self.metric) is not None
        }
        return sorted(points.items())


def front(records: Records, *, standalone: bool = False) -> str:
    """Score against state size. Models without state stand left of the logarithmic axis."""
    canvas = Canvas(760, 430)
    trials = [t for t in board.finished(records.document) if state_of(t) is not None]
    title = f"{records.metric} against bytes of state per sample"
    if not trials:
        canvas.text(380, 215, "no trial has finished yet", anchor="middle")
        return canvas.svg(title, standalone=standalone)
    y = _score_axis(canvas, records, [score_of(records, trial) for trial in trials], records.metric)
    x = _state_axis(canvas, trials)
    _draw_floors(canvas, records.floors, y)
    front = board.state_front(records.document)
    points = [(x(state_of(trial) or 0.0), y(score_of(records, trial))) for trial in front]
    if len(points) > 1:
        path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
        path += "".join(f"H{px:.1f}V{py:.1f}" for px, py in points[1:])
        canvas.add(element("path", d=path, class_="front"))
    chosen = {trial["number"] for trial in front}
    for trial in sorted(trials, key=lambda t: t["number"] in chosen):
        _draw_trial(canvas, records, trial, x, y, on_front=trial["number"] in chosen)
    for trial, point in zip(front, points, strict=True):
        if not board.is_baseline(trial):
            canvas.label(*point, _short(records, trial))
    for trial in {trial["variant"]: trial for trial in trials if board.is_baseline(trial)}.values():
        words = f"{trial['variant']} ({board.BASELINES[trial['variant']]})"
        canvas.label(x(state_of(trial) or 0.0), y(score_of(records, trial)), words, "muted")
    if standalone:
        _legend_in(canvas, records, trials)
    return canvas.svg(title, standalone=standalone)


def _draw_trial(
    canvas: Canvas, records: Records, trial: Trial, x: Any, y: Scale, *, on_front: bool
) -> None:
    variant = trial["variant"] or ""
    px, py, colour = x(state_of(trial) or 0.0), y(score_of(records, trial)), records.colour(variant)
    hollow = board.is_baseline(trial)
    mark = marker(
        records.shape(variant),
        px,
        py,
        class_=f"mark hollow s{colour}" if hollow else f"mark c{colour}",
        opacity=None if trial["state"] == "complete" else 0.35,
    )
    ring = element("circle", cx=px, cy=py, r=9.5, class_="ring") if on_front else ""
    canvas.add(element("g", f"<title>{escape(tip(records, trial))}</title>{ring}{mark}"))
    canvas.occupy(px, py)


def _state_axis(canvas: Canvas, trials: Sequence[Trial]) -> Any:
    """The horizontal axis in bytes; a position for every size, none included."""
    sizes = [size for trial in trials if (size := state_of(trial))]
    some_without = len(sizes) < len(trials)
    start = canvas.left + (96 if some_without else 24)
    end = canvas.width - canvas.right - 24
    ticks = power_ticks(min(sizes), max(sizes)) if sizes else []
    scale = Scale(ticks[0], ticks[-1], start, end, log=True) if ticks else None
    none = canvas.left + 26.0
    labels = [(none, "none")] if some_without else []
    labels += [(scale(tick), board.size(tick)) for tick in ticks] if scale else []
    canvas.x_axis(labels, "state per sample (logarithmic)")

    def position(size: float) -> float:
        return scale(size) if scale and size > 0 else none

    return position


def _score_axis(canvas: Canvas, records: Records, values: Sequence[float], title: str) -> Scale:
    """The vertical axis: 0 to 1 for shares, else what the values and the floors need."""
    everything = [*values, *records.floors.values()]
    low, high = min(everything), max(everything)
    share = low >= 0 and high <= 1 and board.main_objective(records.document)[1]
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1.0] if share else nice_ticks(low, high)
    base = canvas.height - canvas.bottom
    scale = Scale(ticks[0], ticks[-1], base - (6 if share else 0), canvas.top)
    canvas.y_axis(scale, ticks, title)
    return scale


def _draw_floors(canvas: Canvas, floors: Mapping[str, float], y: Scale) -> None:
    """Dashed lines; the words of the highest stand above its line, those of the others below."""
    x0, x1 = canvas.left, canvas.width - canvas.right
    ordered = sorted(floors.items(), key=lambda item: item[1])
    for index, (name, value) in enumerate(ordered):
        at = y(value)
        canvas.add(element("line", x1=x0, x2=x1, y1=at, y2=at, class_="floor"))
        canvas.taken.append((x0, at - 1, x1, at + 1))
        words = f"floor: {name.replace('_', ' ')} {value:.2f}"
        base = at - 5 if index == len(ordered) - 1 else at + 14
        canvas.text(x1, base, words, anchor="end")
        canvas.taken.append((x1 - CHARACTER * len(words), base - 11, x1, base + 3))


def _legend_in(canvas: Canvas, records: Records, trials: Sequence[Trial]) -> None:
    """The legend of a picture that stands alone, above its frame."""
    shift = 26
    canvas.height += shift
    body = element("g", "".join(canvas.parts), transform=f"translate(0 {shift})")
    canvas.parts = [body]
    left = float(canvas.left)
    shown = {trial["variant"] or "" for trial in trials}
    for variant in (name for name in records.variants if name in shown):
        canvas.add(legend_mark(records, variant, left + 6, 20))
        words = variant or "model"
        canvas.text(left + 17, 24, words, class_="ink")
        left += 32 + 6.8 * len(words)


def legend_mark(records: Records, variant: str, x: float, y: float) -> str:
    colour = records.colour(variant)
    hollow = variant in board.BASELINES
    class_ = f"mark hollow s{colour}" if hollow else f"mark c{colour}"
    return marker(records.shape(variant), x, y, class_=class_)


def curves(records: Records) -> str:
    """Objective over training steps: a small chart for each variant, all on the same axes."""
    curves = {trial["number"]: records.curve(trial) for trial in records.trials}
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return ""
    last = max(step for step, _ in points)
    best = {t["variant"]: t["number"] for t in reversed(board.ranked(records.document))}
    charts = []
    for variant in records.variants:
        own = [t for t in records.trials if (t["variant"] or "") == variant and curves[t["number"]]]
        if not own:
            continue
        canvas = Canvas(340, 220, left=44, right=22, top=26, bottom=34)
        y = _score_axis(canvas, records, [value for _, value in points], "")
        ticks = nice_ticks(0, last, 4)
        x = Scale(0, ticks[-1], canvas.left, canvas.width - canvas.right)
        canvas.x_axis([(x(tick), tick_text(tick)) for tick in ticks])
        canvas.text(canvas.left, 14, variant or "model", class_="ink strong")
        canvas.text(canvas.width - canvas.right, 14, _count(len(own), "trial"), anchor="end")
        for value in records.floors.values():
            at = y(value)
            x0, x1 = canvas.left, canvas.width - canvas.right
            canvas.add(element("line", x1=x0, x2=x1, y1=at, y2=at, class_="floor"))
        for trial in sorted(own, key=lambda t: t["number"] == best.get(variant)):
            line = " ".join(f"{x(step):.1f},{y(v):.1f}" for step, v in curves[trial["number"]])
            title = f"<title>{escape(tip(records, trial))}</title>"
            class_ = f"curve s{records.colour(variant)}"
            strong = trial["number"] == best.get(variant) or len(own) == 1
            drawn = element("polyline", title, points=line, class_=class_)
            canvas.add(element("g", drawn, opacity=1 if strong else 0.4))
        charts.append(f"<figure>{canvas.svg(f'{records.metric} of {variant} over steps')}</figure>")
    return f'<div class="multiples">{"".join(charts)}</div>'


def state_of(trial: Trial) -> float | None:
    return board.score(trial, "cost/state_bytes")


def score_of(records: Records, trial: Trial) -> float:
    value = board.score(trial, records.metric)
    return math.nan if value is None else value


def label(trial: Trial) -> str:
    drawn = board.settings(trial)
    return f"{trial['number']:03d} {trial['variant'] or ''}".strip() + (
        f" ({drawn})" if drawn else ""
    )


def _short(records: Records, trial: Trial) -> str:
    return f"{trial['variant'] or 'trial'} {trial['number']:03d}"


def tip(records: Records, trial: Trial) -> str:
    lines = [label(trial)]
    if board.score(trial, records.metric) is not None:
        lines.append(f"{records.metric}: {score_of(records, trial):.4f}")
    for name, heading in board.COSTS.items():
        if board.score(trial, name) is not None:
            lines.append(f"{heading}: {board.cost(trial, name)}")
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
