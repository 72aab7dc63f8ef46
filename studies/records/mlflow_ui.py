"""What MLflow's pages show of a study without being asked: its kind, and a view of its trials.

MLflow opens an experiment of no kind as one of traces, and lists runs without their parameters.
So the experiment says that it holds training runs, and has a saved view, in the menu `Views`:
trials side by side, best first, with columns of what was searched, objectives and costs, and with
charts of them. The view is a tag whose content is the page's own state; a server that does not
know it ignores it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from memarch.studies.records.store import Json, StudyFolder, read_json
from memarch.studies.results import leaderboard as board

if TYPE_CHECKING:
    from mlflow import MlflowClient

KIND = "mlflow.experimentKind"
TRAINING = "custom_model_development"
VIEW = "mlflow.sharedViewState."


def introduce(client: MlflowClient, experiment: str, folder: StudyFolder, study_id: str) -> None:
    """Make the experiment's pages show the study's trials."""
    client.set_experiment_tag(experiment, KIND, TRAINING)
    question = (read_json(folder.path / "resolved.json") or {}).get("study", {}).get("question")
    if question:
        client.set_experiment_tag(experiment, "mlflow.note.content", question)
    made = int(float(folder.info.get("created") or 0) * 1000)
    view = {"name": f"trials of {folder.name}", "createdAt": made, "updatedAt": made}
    state = json.dumps(_state(folder, study_id))
    client.set_experiment_tag(
        experiment, VIEW + view_key(study_id), json.dumps(view | {"state": state})
    )


def view_key(study_id: str) -> str:
    """The name of a study's view in an address."""
    return f"memarch-{study_id[:8]}"


def view_address(experiment: str, study_id: str) -> str:
    """Where the view is, below the server's address."""
    return _page(experiment, view_key(study_id))


def saved_views(experiment: str, tags: Iterable[Mapping[str, str]]) -> list[str]:
    """The addresses of our views, by an experiment's tags as MLflow's API gives them."""
    keys = [tag["key"].removeprefix(VIEW) for tag in tags if tag["key"].startswith(VIEW)]
    return [_page(experiment, key) for key in keys if key.startswith("memarch-")]


def _page(experiment: str, key: str) -> str:
    page = f"#/experiments/{experiment}/runs?workflowType=machine_learning"
    return f"{page}&viewStateShareKey={key}"


def tags_of(record: Mapping[str, Any]) -> dict[str, str]:
    """What trials are filtered by: `tags.mechanism = 'rmt'`, `tags.memarch.kind = 'trial'`."""
    kind = "copy" if board.is_copy(record) else "trial"
    return {"memarch.kind": kind, "mechanism": str(record.get("mechanism"))}


def _state(folder: StudyFolder, study_id: str) -> Json:
    """The state of MLflow's page of runs: filter, order, columns, charts."""
    objective = list(folder.info["objective"])
    main, way = objective[0], folder.info["objective"][objective[0]]
    ranges = (read_json(folder.path / "resolved.json") or {}).get("ranges") or {}
    params = [*(["variant"] if len(ranges) > 1 else [])]
    params += list(dict.fromkeys(name for space in ranges.values() for name in space))
    costs = [name for name in board.COSTS if name not in objective]
    columns = [f"params.`{name}`" for name in params]
    columns += [f"metrics.`{name}`" for name in (*objective, *costs)]
    return {
        "searchFilter": f"tags.`memarch.kind` = 'trial' and tags.`memarch.id` = '{study_id}'",
        "orderByKey": f"metrics.`{main}`",
        "orderByAsc": way == "minimize",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "runsHiddenMode": "FIRST_20_RUNS",
        "isAccordionReordered": True,
        "compareRunSections": [
            {
                "uuid": "memarch",
                "name": folder.name,
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
                "columns": 2,
            }
        ],
        "compareRunCharts": _charts(ranges, objective),
    }


def _charts(ranges: Mapping[str, Json], objective: list[str]) -> list[Json]:
    """Parallel coordinates, the main objective against costs, learning curves."""
    main, state = objective[0], "cost/state_bytes"
    across = [name for name in (*objective[1:], state, "cost/flops_per_token") if name != main]
    charts: list[Json] = [
        {
            "type": "PARALLEL",
            "selectedParams": [*(["variant"] if len(variants) > 1 else []), *params],
            "selectedMetrics": [*dict.fromkeys([state, *reversed(objective)])],
            "showAllRuns": True,
        }
        for params, variants in _alike(ranges).items()
    ]
    charts += [
        {
            "type": "SCATTER",
            "xaxis": {"key": name, "type": "METRIC"},
            "yaxis": {"key": main, "type": "METRIC"},
        }
        for name in dict.fromkeys(across)
    ]
    for axis in ("", "train/tokens", "train/flops"):
        charts.append(
            {
                "type": "LINE",
                "metricKey": main,
                "selectedMetricKeys": [main],
                "xAxisKey": "metric" if axis else "step",
                "selectedXAxisMetricKey": axis,
                "useGlobalXaxisKey": False,
                "lineSmoothness": 0,
                "scaleType": "linear",
                "xAxisScaleType": "linear",
            }
        )
    shared: Json = {"runsCountToCompare": 100, "deleted": False, "isGenerated": False}
    return [
        chart | shared | {"uuid": f"memarch-{index}", "metricSectionId": "memarch"}
        for index, chart in enumerate(charts)
    ]


def _alike(ranges: Mapping[str, Json]) -> dict[tuple[str, ...], list[str]]:
    """Variants by what is searched in them: a run without one of a chart's values is not in it."""
    found: dict[tuple[str, ...], list[str]] = {}
    for variant, space in ranges.items():
        if space:
            found.setdefault(tuple(space), []).append(variant)
    return found
