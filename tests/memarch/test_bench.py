"""`memarch bench`: rows of ratios, one document, wrong input refused; no part of the study side."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from memarch import cli
from memarch.bench import diagonal, kernels, long_input, timing
from memarch.bench.shapes import MEMORIES, PRESETS, adapt
from memarch.bench.timing import Timed, ratios, side_by_side
from memarch.kernels import checks

CPU = torch.device("cpu")
TINY = ["--layers", 2, "--width", 16, "--segment-length", 4, "--segments", 3, "--seconds", 0]
ON_CPU = ["--device", "cpu"]
KEYS = {"case", "baseline", "candidate", "baseline_seconds", "candidate_seconds", "speedup"}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMARCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `memarch bench` in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.run(["bench", *(str(argument) for argument in arguments)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


def check_document(document: dict[str, Any]) -> None:
    assert {"device", "versions", "rows"} <= set(document)
    assert document["versions"]["torch"] == torch.__version__
    assert document["threads"] == torch.get_num_threads()
    for row in document["rows"]:
        assert set(row) >= KEYS
        ratio = row["baseline_seconds"] / row["candidate_seconds"]
        assert row["speedup"] == pytest.approx(ratio)
        assert row["candidate_seconds"] > 0


def test_every_order_that_a_memory_allows_is_compared_with_the_sequential_one(run: Run) -> None:
    code, out, err = run("diagonal", *TINY, "--batch", 1, 2, "--json")
    assert code == 0, err
    document = json.loads(out)
    check_document(document)
    found = {
        (memory, row["mode"], row["batch"], row["candidate"])
        for row in document["rows"]
        for memory in MEMORIES
        if f", {memory}," in row["case"]
    }
    orders = {"armt": {"diagonal", "auto"}, "deltanet": {"diagonal", "layerwise", "auto"}}
    assert found == {
        (memory, mode, batch, order)
        for memory, names in orders.items()
        for mode in ("inference", "training")
        for batch in (1, 2)
        for order in names
    }
    assert {row["baseline"] for row in document["rows"]} == {"sequential"}
    for row in document["rows"]:
        if row["candidate"] == "auto":
            assert row["chose"] in {"sequential", *orders["deltanet"]}
            assert row["reason"]
            assert row["share_of_best"] > 0
            assert 0 < row["choice_of_best"] <= 1
    assert "[8/8" in err, "progress goes to stderr"


def test_large_batches_train_on_fewer_segments(run: Run) -> None:
    arguments = [*TINY, "--segments", 6, "--memory", "armt", "--training-tokens", 32]
    code, out, err = run("diagonal", *arguments, "--batch", 1, 2, 9, "--json")
    assert code == 0, err
    found = {(row["mode"], row["batch"]): row["segments"] for row in json.loads(out)["rows"]}
    assert found == {
        ("inference", 1): 6,
        ("inference", 2): 6,
        ("inference", 9): 6,
        ("training", 1): 6,
        ("training", 2): 4,
        ("training", 9): 1,
    }


def test_a_long_input_is_compared_with_ceilings_the_sequential_order_and_full_attention(
    run: Run,
) -> None:
    code, out, err = run(
        "diagonal", "--preset", "llama-1b", *TINY, "--width", 64, *ON_CPU, "--json"
    )
    assert code == 0, err
    document = json.loads(out)
    check_document(document)
    assert [(row["baseline"], row["candidate"]) for row in document["rows"]] == [
        ("one cell at a time", "grouped"),
        ("always-full group", "diagonal"),
        ("sequential", "diagonal"),
        ("full attention, transformers", "diagonal"),
        ("full attention, one segment", "diagonal"),
    ]
    orders = document["rows"][2]
    assert 0 < orders["candidate_error"] < 0.1
    assert 0 < orders["baseline_error"] < 0.1


def test_a_group_that_is_never_full_has_no_ideal(run: Run) -> None:
    arguments = [*TINY, "--layers", 4, "--width", 64]
    code, out, _ = run("diagonal", "--preset", "llama-1b", *arguments, *ON_CPU, "--json")
    assert code == 0
    document = json.loads(out)
    assert "always-full group" not in {row["baseline"] for row in document["rows"]}
    assert document["notes"] == [
        "4 layers of width 64, 3 segments of 4: the group of 4 layers is never full"
    ]


def test_kernels_without_a_gpu_are_the_plain_ones_and_it_says_so(run: Run) -> None:
    arguments = ["--operation", "rms_norm", "delta_rule", "--no-compile", "--seconds", 0]
    code, out, err = run("kernels", *arguments, "--device", "cpu", "--json")
    assert code == 0, err
    document = json.loads(out)
    check_document(document)
    assert [(row["case"].split(", ")[:2], row["candidate"]) for row in document["rows"]] == [
        ([name, direction], "reference")
        for name in ("rms_norm", "delta_rule")
        for direction in ("forward", "forward and backward")
    ]
    norm, rule = document["rows"][0], document["rows"][2]
    elements = 4 * 8 * 40 * 128
    assert norm["bytes"] == 4 * (2 * elements + 4 * 128), "x and weight read, y written"
    assert (norm["flops"], norm["matrix_share"]) == (0, 0)
    assert rule["flops"] > 0
    assert rule["matrix_share"] > 0
    assert "Triton kernels were not timed: there is no GPU" in document["notes"]


def test_every_operation_is_measured() -> None:
    folders = {path.parent.name for path in Path(checks.__file__).parent.glob("*/__init__.py")}
    assert set(kernels.OPERATIONS) == folders


def test_the_table_has_ratios_first_and_a_result_can_be_kept_and_drawn(
    run: Run, tmp_path: Path
) -> None:
    kept, page, again = (tmp_path / name for name in ("kept.json", "page.html", "again.html"))
    arguments = [*TINY, "--batch", 1, "--memory", "armt", "--mode", "inference"]
    code, out, err = run("diagonal", *arguments, "--json", kept, "--plot", page)
    assert code == 0, err
    assert out.splitlines()[0].split() == ["speedup", "of", "over", "times", "case", "remarks"]
    assert "x (" in out.splitlines()[2].split("diagonal")[0]
    document = json.loads(kept.read_text("utf-8"))
    check_document(document)
    assert document["device"] in out
    assert run("plot", kept, again)[:2] == (0, f"{again}\n")
    for drawn in (page, again):
        text = drawn.read_text("utf-8")
        assert "diagonal over sequential" in text
        assert "cdn.plot" not in text.split("<body>")[1][:200]


def test_what_was_found_before_a_failure_is_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = diagonal._case

    def fails_at_batch_2(*arguments: Any) -> Any:
        if arguments[4] == 2:
            raise RuntimeError("out of memory")
        return measure(*arguments)

    monkeypatch.setattr(diagonal, "_case", fails_at_batch_2)
    kept = tmp_path / "kept.json"
    arguments = [*TINY, "--batch", 1, 2, "--memory", "armt", "--mode", "inference"]
    code, _, err = run("diagonal", *arguments, "--json", kept)
    assert code == 1
    assert "out of memory" in err
    check_document(json.loads(kept.read_text("utf-8")))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["diagonl"], "did you mean 'diagonal'?"),
        (["diagonal", "--preset", "llama-7b"], "--preset: invalid choice: 'llama-7b'"),
        (["diagonal", "--batch", "0"], "--batch: must be a whole number of at least 1, got '0'"),
        (["diagonal", "--seconds", "nan"], "--seconds: must be a number of seconds, got 'nan'"),
        (["diagonal", "--width", "18"], "--width must be a multiple of the 4 heads, got 18"),
        (
            ["diagonal", "--preset", "llama-1b", *ON_CPU, "--memory", "armt"],
            "--memory is for --preset small",
        ),
        (["diagonal", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["diagonal", "--device", "cpu", "--impl", "triton"], "needs an NVIDIA GPU"),
        (["kernels", "--operation", "rms_nrm"], "did you mean 'rms_norm'?"),
        (["plot", "nowhere.json", "page.html"], "nowhere.json: No such file or directory"),
        (["plot", __file__, "page.html"], "is no result of `memarch bench`"),
        (["plot", "found.json", "nowhere/page.html"], "there is no folder nowhere to write"),
        (["diagonal", "--json", "nowhere/out.json"], "there is no folder nowhere to write"),
    ],
)
def test_wrong_input_is_code_2_and_says_what_is_right(
    arguments: list[str], says: str, run: Run
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_an_absent_gpu_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = run("diagonal", "--device", "cuda")
    assert code == 2
    assert "torch finds no GPU here" in err
    code, _, err = run("diagonal", "--preset", "llama-1b")
    assert code == 2
    assert "--preset llama-1b is for a GPU, and torch finds none" in err


def test_help_names_every_option(run: Run) -> None:
    code, out, _ = run("diagonal", "--help")
    assert code == 0
    assert "usage: memarch bench diagonal" in out
    assert "--segment-length" in out


def test_candidates_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slows down does so for all alike: a b, b a, a b."""
    clock = count()
    monkeypatch.setattr(timing, "perf_counter", lambda: 2.0 * next(clock))
    ran: list[str] = []
    works = {name: lambda name=name: ran.append(name) for name in "ab"}
    timed = side_by_side(works, CPU, seconds=0)
    assert "".join(ran) == "ab" + "abbaab", "one long run to warm up, three samples each"
    assert [len(each.seconds) for each in timed.values()] == [3, 3]
    assert timed["a"].peak_bytes is None


def test_ratios_compare_turn_with_turn() -> None:
    low, high = ratios(Timed([2.0, 4.0, 8.0], None), Timed([1.0, 2.0, 4.0], None))
    assert (low, high) == (2.0, 2.0)


def test_shapes_are_the_ones_that_the_paper_measured() -> None:
    shape = next(s for s in PRESETS["llama-1b"] if s.segment_length == 1024)
    assert (shape.layers, shape.width, shape.heads, shape.kv_heads) == (16, 2048, 32, 8)
    assert (shape.mlp, shape.memory_tokens, shape.d_mem) == (8192, 128, 64)
    assert (shape.tokens, shape.segments) == (131072, 128)
    smaller = adapt([shape], layers=2, width=None, segment_lengths=[512, 512], segments=3)
    assert [(s.layers, s.width, s.tokens) for s in smaller] == [(2, 2048, 1536)]


def test_every_product_of_a_cell_is_in_its_ceiling() -> None:
    """The sizes of the matrices are those of the model's Linear layers, and A twice."""
    shape = adapt([PRESETS["llama-1b"][0]], layers=1, width=64, segment_lengths=[4], segments=1)[0]
    from memarch.bench.shapes import build

    model = build(shape, "armt", "reference", CPU)
    (cell,) = model.cells()
    linear = sorted(
        (module.in_features, module.out_features)
        for name, module in cell.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith("beta")
    )
    products = long_input._product_sizes(shape)
    features = 6 * shape.d_mem
    of_the_matrix = [(4 + 128, features, 64), (features, 128, 64)]
    assert set(of_the_matrix) <= set(products)
    others = [product for product in products if product not in of_the_matrix]
    assert sorted(product[1:] for product in others) == linear


def test_random_weights_are_made_in_their_type_and_positions_stay_exact() -> None:
    from memarch.bench.shapes import build

    shape = adapt([PRESETS["llama-1b"][0]], layers=1, width=64, segment_lengths=[4], segments=1)[0]
    model = build(shape, "armt", "reference", CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32


def test_it_runs_where_only_the_model_side_is_installed(tmp_path: Path) -> None:
    """A GPU machine needs torch and transformers, no click, no Ray, no command line."""
    code = f"""
        import importlib.util, runpy, sys
        ABSENT = set("click plotly rich optuna ray mlflow datasets peft pandas".split())
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ABSENT:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Absent())
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, package=None: (
            None if name.partition(".")[0] in ABSENT else find(name, package))
        sys.argv = ["bench", "diagonal", *{[str(a) for a in TINY]!r}, "--memory", "armt",
                    "--mode", "inference", "--batch", "1", "--json", sys.argv[1]]
        try:
            runpy.run_module("memarch.bench", run_name="__main__")
        except SystemExit as end:
            assert end.code == 0, end.code
        assert "memarch.cli" not in sys.modules
        sys.argv = ["bench", "plot", "a.json", "b.html"]
        try:
            runpy.run_module("memarch.bench", run_name="__main__")
        except SystemExit as end:
            assert end.code == 2, end.code
    """
    kept = tmp_path / "kept.json"
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(kept)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "a plot needs plotly" in result.stderr
    check_document(json.loads(kept.read_text("utf-8")) | {"threads": torch.get_num_threads()})
