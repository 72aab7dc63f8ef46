"""Keep a finished study as a result: its record with machine and versions, its front as a picture.

    python benchmarks/keep_study.py runs/studies/quickstart

writes `benchmarks/results/NAME.json` and `docs/images/NAME.svg`, and prints the leaderboard, of an
ablation its conclusions, as the Markdown table that the docs quote.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from memarch.studies.records.store import plain, show_study
from memarch.studies.report.ablation import ablation_table, forest
from memarch.studies.report.records import Records
from memarch.studies.report.write import front_svg
from memarch.studies.results import leaderboard as board
from memarch.studies.results.ablation import conclusions

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "optuna", "ray", "mlflow")
KEPT = ("number", "variant", "seed", "state", "params", "metrics", "converged")


def main(folder: Path) -> None:
    document = conclusions(show_study(folder.name, folder.parents[1]))
    records = Records(folder)
    is_ablation = bool(document["comparisons"])
    best_first = board.ranked(document)
    result = {
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "study": (folder / "study.yaml").read_text(),
        "objective": document["objective"],
        "floors": board.floors(best_first, board.main_objective(document)[0]),
        "trials": [{key: trial[key] for key in KEPT} for trial in best_first],
    } | {key: document[key] for key in ("settings", "comparisons") if document[key]}
    (ROOT / "docs" / "images").mkdir(parents=True, exist_ok=True)
    picture = forest(records, standalone=True) if is_ablation else front_svg(folder)
    (ROOT / "docs" / "images" / f"{folder.name}.svg").write_text(picture)
    path = ROOT / "benchmarks" / "results" / f"{folder.name}.json"
    path.write_text(json.dumps(plain(result), indent=1) + "\n")
    print(ablation_table(records).markdown() if is_ablation else table(document))


def table(document: board.Document) -> str:
    """The leaderboard in Markdown, best first."""
    metric, _ = board.main_objective(document)
    name = metric.rpartition("/")[2]
    rows = [
        f"| variant | settings | {name} | state | FLOPs/token | time |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for trial in board.ranked(document):
        costs = [
            board.cost(trial, key)
            for key in ("cost/state_bytes", "cost/flops_per_token", "cost/wall_seconds")
        ]
        score = f"{board.score(trial, metric):.3f}"
        rows.append(
            " | ".join(["| " + trial["variant"], board.settings(trial), score, *costs]) + " |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
