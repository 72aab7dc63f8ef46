"""The leaderboard's order, floors and front, and the page and pictures that are made from them."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import shutil
import statistics
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image
from report_study import write_finished_study

from memarch.studies.records.store import write_json
from memarch.studies.report.ablation import forest
from memarch.studies.report.axes import Values
from memarch.studies.report.charts import decade_ticks, nice_ticks, power_ticks
from memarch.studies.report.contours import contours
from memarch.studies.report.formats import latex, markdown
from memarch.studies.report.maps import Crossing, crossing, maps
from memarch.studies.report.pictures import axes_of_curves, horizontals
from memarch.studies.report.records import Records
from memarch.studies.report.write import front_svg, write_report
from memarch.studies.results import leaderboard as board
from memarch.studies.results.importance import ALL, importances

METRIC = "eval/kv/exact_match"


def trial(number: int, variant: str, score: float | None, state_bytes: int, **more: Any) -> Any:
    metrics = {
        METRIC: score,
        "eval/kv/floor/blind": 0.0625,
        "eval/kv/floor/guess_seen": 0.1,
        "cost/state_bytes": state_bytes,
        "cost/parameters": 27_300,
        "cost/wall_seconds": 20.0 + number,
    }
    return {
        "number": number,
        "variant": variant,
        "state": "complete",
        "params": {"variant": variant, "num_tokens": number, "lr": 0.0031415},
        "metrics": {} if score is None else metrics,
        "spec": {"model": {"memory": {}}},
        "reason": "",
        "attempts": 1,
    } | more


TRIALS = [
    trial(0, "none", 0.104, 0),
    trial(1, "full_attention", 0.99, 10_752),
    trial(2, "rmt", 0.22, 256),
    trial(3, "gradmem", 0.65, 256),
    trial(4, "gradmem", 0.95, 1024),
    trial(5, "armt", 0.60, 25_000),
    trial(6, "rmt", None, 0, state="failed", reason="NaN loss at step <212>"),
    trial(7, "rmt", 0.97, 512, state="pruned", reason="stopped by the pruner"),
]


def document(trials: list[Any] = TRIALS, **objective: str) -> dict[str, Any]:
    goals = objective or {METRIC: "maximize"}
    return {
        "name": "s",
        "state": "complete",
        "objective": goals,
        "trials": trials,
        "best": [1],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study's folder as the driver leaves it."""
    path = tmp_path / "studies" / "s"
    shown = document()
    for each in TRIALS:
        own = path / "trials" / f"{each['number']:03d}"
        write_json(own / "record.json", {k: v for k, v in each.items() if k != "spec"})
        write_json(own / "spec.json", each["spec"])
        write_json(own / "result.json", {"versions": {"torch": "2.13.0"}})
        lines = [
            {"attempt": 1, "step": step, "time": 0.0, "metrics": {METRIC: step / 1000}}
            for step in (100, 200, 300)
        ]
        (own / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = {key: shown[key] for key in ("name", "state", "objective", "best")}
    info |= {"design": "search", "file": "/a/s.yaml", "overrides": ["train.lr=0.1"], "counts": {}}
    write_json(path / "study.json", info)
    (path / "study.yaml").write_text("# Which memory recalls\n# most?\n\nstudy: {name: s}\n")
    return path


def test_best_first_and_stopped_trials_after_complete_ones() -> None:
    assert [row["number"] for row in board.ranked(document())] == [1, 4, 3, 5, 2, 0, 7]


def test_less_is_better_where_the_objective_says_so() -> None:
    rows = board.ranked(document(**{METRIC: "minimize"}))
    assert [row["number"] for row in rows][:2] == [0, 2]


def test_of_several_objectives_the_front_comes_first() -> None:
    shown = document(**{METRIC: "maximize", "cost/state_bytes": "minimize"})
    assert {row["number"] for row in board.ranked(shown)[:4]} == {0, 1, 3, 4}


def test_floors_stand_beside_the_metric_or_one_level_up() -> None:
    expected = {"blind": 0.0625, "guess_seen": 0.1}
    assert board.floors(TRIALS, METRIC) == expected
    assert board.floors(TRIALS, "eval/kv/write_steps-2/exact_match") == expected
    assert board.floors(TRIALS, "eval/other/exact_match") == {}


def test_the_front_has_complete_trials_that_none_beats_with_less_state() -> None:
    assert [row["number"] for row in board.state_front(document())] == [0, 3, 4, 1]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (board.size(96), "96 B"),
        (board.size(2048), "2 KiB"),
        (board.size(None), "-"),
        (board.quantity(27_300), "27.3k"),
        (board.quantity(999), "999"),
        (board.duration(8.44), "8.4 s"),
        (board.duration(200), "3 min 20 s"),
        (board.duration(7500), "2 h 05 min"),
        (board.settings(TRIALS[4]), "num_tokens 4, lr 0.00314"),
    ],
)
def test_numbers_are_written_for_people(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_trial_is_told_from_its_replicates_by_its_seed() -> None:
    rows = [trial(n, "rmt", 0.5, 1, spec={"study": {"seeds": {"model": n}}}) for n in (1, 2)]
    assert board.several_seeds(document(rows))
    assert not board.several_seeds(document(rows[:1]))
    assert board.settings(rows[1], seed=True) == "num_tokens 2, lr 0.00314, seed 2"


def test_ticks_are_round_and_cover_the_values() -> None:
    assert nice_ticks(0.13, 0.87) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(3.0, 3.0)[0] < 3 < nice_ticks(3.0, 3.0)[-1]
    assert power_ticks(256, 10_752)[0] == 256
    assert power_ticks(256, 10_752)[-1] >= 10_752
    assert decade_ticks(270e3, 1.3e6) == [2e5, 5e5, 1e6, 2e6]
    assert decade_ticks(1e-4, 1e-1) == [1e-4, 1e-3, 1e-2, 1e-1]
    assert decade_ticks(5, 5) == [5, 10]


class Page(HTMLParser):
    """Checks that elements nest, and collects text and addresses."""

    VOID = frozenset({"meta", "br", "link", "wbr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_command_names_the_study_where_the_file_does_not(folder: Path) -> None:
    assert "memarch study run s.yaml --set" in write_report(folder).read_text()
    write_json(folder / "resolved.json", {"study": {"name": "other"}})
    assert "memarch study run s.yaml --as s --set" in write_report(folder).read_text()


def test_the_page_is_complete_and_needs_nothing_else(folder: Path) -> None:
    path = write_report(folder)
    assert path == folder / "report.html"
    page = Page()
    page.feed(path.read_text())
    assert page.open == []
    assert all(address.startswith("#") for address in page.addresses)
    text = " ".join(" ".join(page.text).split())
    for expected in (
        "Which memory recalls most?",
        "001 full_attention",
        "It beats the floor of 0.100",
        "guess seen 0.100",
        "no memory",
        "NaN loss at step <212>",
        "memarch study run s.yaml --set train.lr=0.1",
        "torch 2.13.0",
        "Learning curves",
    ):
        assert expected in text
    assert not re.search(r"<!--|nan\b", path.read_text().split("<main>")[1].split("</main>")[0])


def test_a_page_of_a_study_without_finished_trials(folder: Path) -> None:
    for each in (folder / "trials").iterdir():
        write_json(each / "record.json", trial(int(each.name), "rmt", None, 0, state="running"))
        (each / "progress.jsonl").unlink()
    assert "No trial has finished yet" in write_report(folder).read_text()


def test_the_picture_marks_every_trial_the_front_and_the_floors(folder: Path) -> None:
    root = ElementTree.fromstring(front_svg(folder))
    space = "{http://www.w3.org/2000/svg}"
    classes = [element.get("class") or "" for element in root.iter()]
    marks = [c for c in classes if c.startswith("mark")]
    legend = len({each["variant"] for each in TRIALS})
    assert len(marks) == len([each for each in TRIALS if each["metrics"]]) + legend
    assert classes.count("ring") == 4
    assert classes.count("floor") == 2
    words = {element.text for element in root.iter(f"{space}text")}
    assert {"none", "state per sample (logarithmic)", "floor: guess seen 0.10"} <= words


def test_equal_sizes_are_one_curve_a_variant(folder: Path) -> None:
    info = json.loads((folder / "study.json").read_text())
    write_json(folder / "study.json", info | {"sizes": [{"variant": "rmt", "level": 256}]})
    root = ElementTree.fromstring(front_svg(folder))
    lines = [
        e.get("points") or "" for e in root.iter() if (e.get("class") or "").startswith("curve")
    ]
    assert len(lines) == 1  # of gradmem: no other variant has complete trials of two sizes
    assert len(lines[0].split()) == 2


def test_a_loss_has_an_axis_of_its_own(folder: Path) -> None:
    info = json.loads((folder / "study.json").read_text())
    info["objective"] = {"cost/wall_seconds": "minimize"}
    write_json(folder / "study.json", info)
    ElementTree.fromstring(front_svg(folder))
    assert "000 none" in write_report(folder).read_text()


def test_the_page_filters_by_variant_and_knows_all_values(folder: Path) -> None:
    text = write_report(folder).read_text()
    found = re.search(r'id="data">(.*?)</script>', text)
    assert found is not None
    data = json.loads(found[1])
    place = data["names"].index(METRIC)
    assert data["trials"]["4"][3][place] == 0.95
    assert data["trials"]["6"][1:3] == ["failed", "NaN loss at step <212>"]
    for variant in ("none", "full_attention", "rmt", "gradmem", "armt"):
        group = re.search(rf'data-v="(v\d)"[^>]*>.{{0,400}}?{variant}</button>', text)
        assert group is not None
        assert f'class="{group[1]}' in text


def test_learning_curves_over_what_was_reported(tmp_path: Path) -> None:
    records = Records(write_finished_study(tmp_path, 8))
    assert axes_of_curves(records) == ["steps", "tokens", "FLOPs", "seconds"]
    steps = records.curve(records.complete[0])
    flops = records.curve(records.complete[0], "FLOPs")
    assert [score for _, score in steps] == [score for _, score in flops]
    assert [at for at, _ in steps] == [50.0 * n for n in range(1, 11)]
    assert flops[-1][0] == 1e11 * records.complete[0]["params"].get("write_steps", 1)


def test_importances_are_shares_and_find_what_was_planted(tmp_path: Path) -> None:
    shares = importances(Records(write_finished_study(tmp_path, 240)), METRIC)
    assert set(shares) == {ALL, "none", "rmt", "gradmem", "armt"}
    for group in shares.values():
        assert sum(group.values()) == pytest.approx(1.0)
    assert max(shares["gradmem"], key=shares["gradmem"].__getitem__) == "num_tokens"
    layers = {name: share for name, share in shares["armt"].items() if name.startswith("layers")}
    assert max(layers, key=layers.__getitem__) == "layers: 2"


def test_heat_maps_cross_size_segments_and_steps(tmp_path: Path) -> None:
    records = Records(write_finished_study(tmp_path, 240))
    crossed = crossing(records, records.of("gradmem"))
    assert crossed == Crossing("num_tokens", "segment_length", "write_steps")
    drawn = dict(maps(records, "gradmem", METRIC))
    assert list(drawn) == ["write_steps 1", "write_steps 2", "write_steps 3"]
    own = [
        trial["metrics"][METRIC]
        for trial in records.of("gradmem")
        if [trial["params"][k] for k in ("num_tokens", "segment_length", "write_steps")]
        == [8, 16, 1]
    ]
    assert own
    assert f">{statistics.median(own):.3g}</text>" in drawn["write_steps 1"]
    assert maps(records, "none", METRIC) == []


def test_two_of_three_parameters_have_enough_numbers_for_contours(tmp_path: Path) -> None:
    grid = itertools.product([1, 2, 4], [8, 16], [1, 2, 3])
    names = ("num_tokens", "segment_length", "write_steps")
    trials = [{"params": dict(zip(names, values, strict=True))} for values in grid]
    crossed = crossing(Records(tmp_path), trials)
    assert crossed == Crossing("num_tokens", "write_steps", "segment_length")


def test_contours_are_linear_between_what_was_measured_and_end_there() -> None:
    axes = [Values("num_tokens", (1, 2, 4)), Values("write_steps", (1, 2, 3))]
    grid = itertools.product((1, 2, 4), (1, 2, 3))
    chart = contours(axes, {(a, b): (math.log2(a) / 2, "7") for a, b in grid}, (0, 1), "title")
    assert chart is not None
    root = ElementTree.fromstring(chart.svg("title"))
    paths = {e.get("class"): e.get("d") or "" for e in root.iter() if e.tag.endswith("path")}
    chips = [e for e in root.iter() if (e.get("class") or "").startswith("chip")]
    columns = sorted({float(e.get("x") or 0) + float(e.get("width") or 0) / 2 for e in chips})
    assert len(chips) == 9
    assert _reach(paths["h0"]) == (columns[0], columns[2])
    assert _reach(paths["h5"]) == (columns[1], columns[2])
    at = columns[0] + 0.9 * (columns[2] - columns[0])
    assert _reach(paths["contour"]) == pytest.approx((at, at), abs=0.1)


def _reach(path: str) -> tuple[float, float]:
    across = [float(x) for x in re.findall(r"[ML]([-\d.]+),", path)]
    return min(across), max(across)


@pytest.mark.parametrize("settings", [[(1, 1), (2, 2), (4, 2)], [(1, 1), (2, 2), (3, 3)]])
def test_too_few_values_or_a_line_make_no_contours(settings: list[tuple[int, int]]) -> None:
    axes = [Values("a", (1, 2, 3, 4)), Values("b", (1, 2, 3, 4))]
    assert contours(axes, dict.fromkeys(settings, (0.5, "7")), (0, 1), "title") is None


def test_settings_over_their_seeds(tmp_path: Path) -> None:
    folder = write_finished_study(tmp_path, 40, seeds=5)
    text = write_report(folder).read_text()
    records = Records(folder)
    best = records.points[0]
    assert f"{best.mean:.3f}</b> (mean of {len(best.trials)} seeds" in text
    for heading in ("median", "range", "solved", "95 %"):
        assert f">{heading}</th>" in text
    assert "Every trial" in text
    numbers = " ".join(str(trial["number"]) for trial in best.trials)
    assert f'<g class="{records.group(best.variant)}" data-t="{numbers}" ' in text


ABLATION = {
    "baseline": "gradmem",
    "settings": {"none": "without memory", "rmt": "type: rmt", "armt": "type: armt"},
    "equivalence": 0.02,
}


def test_an_ablation_has_a_forest_plot_and_verdicts(tmp_path: Path) -> None:
    folder = write_finished_study(tmp_path, 60, seeds=5, design="ablation", ablation=ABLATION)
    records = Records(folder)
    root = ElementTree.fromstring(forest(records, standalone=True))
    classes = [element.get("class") or "" for element in root.iter()]
    compared = [one for one in records.comparisons if one.difference is not None]
    assert len([c for c in classes if c.startswith("whisker")]) == len(compared) == 3
    assert classes.count("track") == 1
    text = write_report(folder).read_text()
    for one in records.comparisons:
        assert escape(one.verdict) in text
    assert "which counts as equal" in text
    tex = latex(records)
    assert tex.count("\\toprule") == 2
    assert "without memory" in tex
    assert compared[0].verdict in markdown(records)


def test_tables_as_text(folder: Path) -> None:
    rows = list(csv.DictReader(write_report(folder, "csv").read_text().splitlines()))
    assert [row["number"] for row in rows] == [str(each["number"]) for each in TRIALS]
    assert (rows[4][METRIC], rows[4]["num_tokens"], rows[6]["state"]) == ("0.95", "4", "failed")
    assert "| 2 | 004 | gradmem | num_tokens 4, lr 0.00314 | 0.9500 |" in (
        write_report(folder, "md").read_text()
    )
    tex = write_report(folder, "tex").read_text()
    assert r"004 & gradmem & num\_tokens 4, lr 0.00314 & 0.9500" in tex
    assert tex.count(r"\begin") == tex.count(r"\end") == 2


def test_every_picture_as_png(tmp_path: Path, folder: Path) -> None:
    write_report(folder, png=tmp_path / "png")
    drawn = {path.stem for path in (tmp_path / "png").iterdir()}
    assert {"front", "slice_num_tokens", "curves_rmt_over_steps"} <= drawn
    with Image.open(tmp_path / "png" / "front.png") as picture:
        assert picture.size == (2 * 760, 2 * (430 + 26))
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
    assert {(0x2A, 0x78, 0xD6), (0xD9, 0x58, 0x1F), (255, 255, 255)} <= colours


def test_a_page_of_500_trials_is_small_and_valid(tmp_path: Path) -> None:
    text = write_report(write_finished_study(tmp_path, 500)).read_text()
    assert len(text.encode()) < 1_400_000
    page = Page()
    page.feed(text)
    assert page.open == []
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text)
    assert "out of memory" in text
    assert "Which memory recalls most?" in text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_script_runs_without_errors(folder: Path, tmp_path: Path) -> None:
    """The page in a real browser: filters, tabs, details and zoom work, and nothing is wrong."""
    page = write_report(folder)
    probe = """<script>
      addEventListener("error", (event) => { document.title = "error: " + event.message; });
      addEventListener("load", () => {
        const button = document.querySelector("button[data-v=v0]");
        button.click();
        document.querySelector("svg [data-t='4']").dispatchEvent(
          new MouseEvent("click", {bubbles: true}));
        document.querySelectorAll("th").forEach((head) => head.click());
        const card = document.getElementById("card");
        const chart = document.querySelector("svg[data-zoom]"), box = chart.getBoundingClientRect();
        const again = chart.parentElement.querySelector(".again");
        const ticks = () => chart.querySelector(".ticks-y").textContent;
        const drag = (kind, share) => chart.dispatchEvent(new PointerEvent(kind, {bubbles: true,
          clientX: box.x + box.width * share, clientY: box.y + box.height * share / 2}));
        const seen = [ticks()];
        drag("pointerdown", 0.3); drag("pointermove", 0.6); drag("pointerup", 0.6);
        seen.push(ticks(), again.hidden);
        again.click();
        seen.push(ticks() === seen[0], again.hidden);
        chart.dispatchEvent(new WheelEvent("wheel", {deltaY: -100, ctrlKey: true,
          clientX: box.x + box.width / 2, clientY: box.y + box.height / 2}));
        seen.push(again.hidden);
        chart.dispatchEvent(new MouseEvent("dblclick"));
        document.title += "|" + [...seen, again.hidden].join();
        document.title += "|" + [document.querySelectorAll(".off").length > 0, card.hidden,
          card.textContent.includes("0.95"),
          document.querySelectorAll(".panel:not([hidden])").length > 0].join();
      });
    </script>"""
    page.write_text(page.read_text().replace("<body>", f"<body>{probe}"))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=2000"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr[-2000:]
    name, zoomed, rest = title[1].split("|")
    assert zoomed == "00.20.40.60.81,0.70.750.80.85,false,true,true,false,true"
    assert (name, rest) == ("s - memarch", "true,false,true,true")


def test_two_objectives_each_have_their_pictures(tmp_path: Path) -> None:
    goals = {METRIC: "maximize", "cost/flops_per_token": "minimize"}
    folder = write_finished_study(tmp_path, 120, objective=goals)
    text = write_report(folder).read_text()
    assert text.count(f'<button role="tab">{METRIC}</button>') == 2  # importances and slices
    records = Records(folder)
    assert horizontals(records)[:2] == ["cost/state_bytes", "cost/flops_per_token"]
    dear = importances(records, "cost/flops_per_token")["rmt"]
    assert max(dear, key=dear.__getitem__) == "write_steps"
    assert "cost/flops_per_token" in latex(records).replace(r"\_", "_")
