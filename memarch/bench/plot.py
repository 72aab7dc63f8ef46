"""A result as one page that needs nothing else: bars of speedup, case by case."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from memarch.bench.result import Document
from memarch.components.errors import SpecError


def check_plotly() -> None:
    """Say that plotly is missing before anything is measured for it."""
    if find_spec("plotly") is None:
        raise SpecError(
            "a plot needs plotly, which is not installed here; keep the result by --json FILE and "
            "draw it elsewhere: memarch bench plot FILE PAGE.html"
        )


def write_plot(found: Document, path: Path) -> None:
    """One bar a row, one colour a pair of candidate and baseline, whiskers over the quartiles."""
    import plotly.graph_objects as go

    figure = go.Figure()
    pairs = dict.fromkeys((row["candidate"], row["baseline"]) for row in found["rows"])
    for pair in pairs:
        rows = [row for row in found["rows"] if (row["candidate"], row["baseline"]) == pair]
        speedups = [row["speedup"] for row in rows]
        highs = [max(0.0, row["speedup_quartiles"][1] - row["speedup"]) for row in rows]
        lows = [max(0.0, row["speedup"] - row["speedup_quartiles"][0]) for row in rows]
        figure.add_bar(
            name=" over ".join(pair),
            y=[row["case"] for row in rows],
            x=speedups,
            text=[f"{speedup:.2f}" for speedup in speedups],
            textposition="inside",
            insidetextanchor="start",
            orientation="h",
            error_x={"type": "data", "array": highs, "arrayminus": lows, "thickness": 1},
        )
    figure.add_vline(x=1, line_dash="dot")
    figure.update_layout(
        title=f"bench {found['benchmark']}: times as fast as the baseline<br>"
        f"<sup>{found['device']}, torch {found['versions']['torch']}</sup>",
        height=160 + 28 * len(found["rows"]) + 12 * len({row["case"] for row in found["rows"]}),
        xaxis_title="speedup",
        yaxis={"autorange": "reversed", "automargin": True},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom"},
        template="plotly_white",
    )
    figure.write_html(path, include_plotlyjs=True)
