"""The command line: help, exit codes, one JSON document, no heavy imports where none is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memarch import cli, search_spaces
from memarch.output import document_only

Run = Callable[..., tuple[int, str, str]]

TINY = """
study: {name: tiny, budget: {trials: 2}, objective: {eval/kv/exact_match: maximize}}
task: {type: kv_retrieval, pairs: 2, format: compact}
model:
  backbone: {type: llama, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}
  memory: {main: {type: rmt, num_tokens: 2}}
  segment_length: 8
train: {budget: {steps: 2}, batch_size: 4}
eval: {kv: {size: 8}}
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def commands(group: object = cli.app, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        path = (*prefix, name)
        found.append(path)
        if hasattr(command, "commands"):
            found += commands(command, path)
    return found


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_help_says_what_a_command_does_and_shows_an_example(
    path: tuple[str, ...], run: Run
) -> None:
    code, out, _ = run(*path, "--help")
    assert code == 0
    assert f"memarch {' '.join(path)}" in out.split("\n", 1)[1], "an example of the command"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["studdy"], "did you mean 'study'?"),
        (["study", "shwo"], "did you mean 'show'?"),
        (["validate"], "Missing argument"),
        (["validate", "--sett", "a=1"], "No such option"),
        (["new", "thing", "x"], "thing"),
        (["validate", "nowhere.yaml"], "nowhere.yaml"),
        (["check", "nowhere.py"], "no such file: nowhere.py"),
        (["components", "rmtt"], "did you mean 'rmt'?"),
        (["ui", "--storage", "nowhere"], "no MLflow data"),
        (["train", "nowhere.yaml"], "nowhere.yaml"),
        (["eval", "nowhere", "nowhere.yaml"], "neither a folder nor STUDY/NUMBER"),
        (["study", "run", "nowhere.yaml"], "nowhere.yaml"),
        (["study", "resume", "nowhere", "--storage", "nowhere"], "no study 'nowhere'"),
        (["study", "extend", "nowhere", "--storage", "nowhere"], "no study 'nowhere'"),
        (["study", "extend", "nowhere", "--seeds", "a"], "must be numbers with commas"),
        (["study", "diff", "a", "b/1", "--storage", "nowhere"], "give two of one kind"),
        (["study", "show", "nowhere/1", "--storage", "nowhere"], "no study 'nowhere'"),
        (["export", "nowhere/1", "there", "--storage", "nowhere"], "no study 'nowhere'"),
        (["export", "nowhere", "there"], "'nowhere' is not STUDY/NUMBER"),
    ],
)
def test_wrong_input_is_code_2_and_one_message(
    arguments: list[str], says: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert says in err
    assert "Traceback" not in err


def test_an_unknown_study_names_the_nearest(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "quickstart"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text('{"state": "complete", "objective": {"a": "maximize"}}')
    code, _, err = run("study", "show", "quickstrat", "--storage", tmp_path)
    assert code == 2
    assert "did you mean 'quickstart'?" in err


def test_failed_work_is_code_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("memarch.studies.records.store.list_studies", fail)
    code, out, err = run("study", "list")
    assert (code, out) == (1, "")
    assert "the disk is full" in err


def test_one_set_takes_several_values() -> None:
    given = [
        "study",
        "run",
        "a.yaml",
        "--set",
        "resources.gpus=1",
        "train.precision=bf16",
        "--json",
    ]
    flags = ["--set", "resources.gpus=1", "--set", "train.precision=bf16"]
    assert cli.spread_assignments(given) == ["study", "run", "a.yaml", *flags, "--json"]
    assert cli.spread_assignments(["--set", "a=1", "b.yaml"]) == ["--set", "a=1", "b.yaml"]


@pytest.mark.parametrize(
    "name", ["memory_size", "segment_length", "write_steps", "size_by_segment_by_steps"]
)
def test_a_study_that_ships_moves_to_a_gpu_by_one_set(name: str, run: Run) -> None:
    file = Path(search_spaces.__path__[0]) / f"{name}.yaml"
    flags = ["--set", "resources.gpus=1", "train.precision=bf16"]
    code, out, err = run("validate", file, *flags, "--json")
    assert (code, json.loads(out)["notes"]) == (0, []), err


def test_storage_comes_from_the_option_the_environment_or_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMARCH_STORAGE", raising=False)
    assert str(tmp_path / "runs") in run("study", "list")[1].replace("\n", "")
    monkeypatch.setenv("MEMARCH_STORAGE", str(tmp_path / "b"))
    assert str(tmp_path / "b") in run("study", "list")[1].replace("\n", "")
    listed = run("study", "list", "--storage", tmp_path / "c")[1]
    assert str(tmp_path / "c") in listed.replace("\n", "")


def test_json_is_the_only_thing_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with document_only(True):
        print("from python")
        subprocess.run(["echo", "from a child process"], check=True)
    print("{}")
    out, err = capfd.readouterr()
    assert out == "{}\n"
    assert "from python" in err
    assert "from a child process" in err


def test_validate_says_what_is_searched(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    code, out, _ = run("validate", file, "--json", "--set", "train.lr={choice: [0.1, 0.2]}")
    assert code == 0
    document = json.loads(out)
    assert document["valid"] is True
    assert document["variants"] == {"": ["lr"]}
    _, out, _ = run("validate", file, "--set", "train.lr={choice: [0.1, 0.2]}")
    assert "the model: searches lr" in out
    assert "one model" not in out


@pytest.mark.parametrize(
    ("design", "rmt", "none"),
    [
        ("search", "searches match.level, lr", "searches lr"),
        ("grid", "crosses match.level, lr", "crosses lr"),
        (
            "all",
            "runs at each match.level, 32 and 64, lr drawn once for all variants",
            "runs once, lr drawn once for all variants",
        ),
    ],
)
def test_validate_says_what_the_design_does(
    design: str, rmt: str, none: str, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "sized.yaml"
    variants = """
match: {cost/state_floats: [32, 64]}
variants:
  rmt: {model.memory.main.num_tokens: {solve: [1, 64]}}
  none: {model.memory: {replace: {}}}
"""
    file.write_text(TINY + variants)
    sets = ("--set", f"study.design={design}", "train.lr={choice: [0.1, 0.2]}")
    code, out, err = run("validate", file, *sets)
    assert code == 0, err
    assert f"  rmt: {rmt}\n" in out
    assert f"  none: {none}\n" in out


def test_validate_says_at_which_levels_an_ablation_compares(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "sized.yaml"
    text = """
match: {cost/state_floats: [32, 64]}
ablation: {changes: {slow: {set: {train.lr: 0.1}}, none: {remove: model.memory.main}}}
"""
    file.write_text(TINY.replace("num_tokens: 2", "num_tokens: {solve: [1, 64]}") + text)
    code, out, err = run("validate", file, "--set", "study.design=ablation")
    assert code == 0, err
    assert "  baseline: the baseline; runs at each match.level, 32 and 64\n" in out
    assert "  slow: train.lr: 0.1; runs at each match.level, 32 and 64\n" in out
    assert "  none: without model.memory.main\n" in out
    assert "cannot show any difference over 4 comparisons" in out


def test_components_have_the_documented_shape(run: Run) -> None:
    _, out, _ = run("components", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    keys = {"name", "kind", "recurrence", "paper", "settings", "state_bytes"}
    assert all(keys <= set(row) for row in rows.values())
    assert rows["rmt"]["recurrence"] == "per_segment"
    assert rows["armt"]["recurrence"] == "per_layer"
    assert rows["rmt"]["state_bytes"] == 8 * 64 * 4, "8 tokens of 64 floats"
    assert rows["kv_retrieval"]["kind"] == "task"
    undocumented = [
        f"{name}.{setting['name']}"
        for name, row in rows.items()
        for setting in row["settings"]
        if not setting["doc"] and "options" not in setting
    ]
    assert not undocumented


def test_a_component_is_explained_with_its_equations(run: Run) -> None:
    _, out, _ = run("components", "gradmem")
    assert "2603.13875" in out
    assert "grad L(M_k)" in out
    assert "docstring" not in out
    assert "{type: gradmem}  =  {store: {type: tokens}, write: {type: gradient}}" in out
    assert out.index("write (gradient).steps") < out.index("write (forward).steps")


def test_both_forms_of_every_memory_are_the_same() -> None:
    from memarch.arch.spec import parse_memory
    from memarch.catalogue import describe

    for row in describe():
        parsed = [parse_memory(form) for form in row["forms"]]
        assert all(each == parsed[0] for each in parsed), row["name"]


def test_plan_has_sizes_schedule_origins_and_an_estimate(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY.replace("num_tokens: 2", "num_tokens: {choice: [2, 4]}"))
    code, out, _ = run("plan", file, "--json", "--set", "train.lr=0.01")
    assert code == 0
    document = json.loads(out)
    (row,) = document["variants"]
    assert {"name", "parameters", "flops_per_token", "reason"} <= set(row)
    assert (row["state_bytes"], row["state_floats"]) == (4 * 16 * 4, 4 * 16)
    assert row["smallest"]["state_bytes"] == 2 * 16 * 4
    assert row["schedule"] == "sequential"
    origins = document["origins"][""]
    assert origins["train.lr"] == {"value": 0.01, "origin": "--set"}
    assert origins["model.segment_length"]["origin"].endswith("tiny.yaml:7")
    assert origins["model.memory.main.num_tokens"] == {"value": 4, "origin": "draw"}
    assert origins["train.accumulate"]["origin"] == "default"
    assert [each["which"] for each in document["measured"]] == ["smallest", "largest"]
    assert document["estimate"]["seconds"][1] > 0
    assert document["trials"] == 2


def test_a_plan_of_several_seeds_builds_with_the_first(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    code, out, err = run("plan", file, "--dry", "--json", "--set", "study.seeds.model=[3, 4]")
    assert code == 0, err
    assert json.loads(out)["trials"] == 2


def test_train_then_eval(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    code, out, err = run("train", "tiny.yaml", "--json")
    assert code == 0, err
    trained = json.loads(out)
    assert set(trained) == {"metrics", "spec", "path"}
    assert Path(trained["path"], "model.safetensors").is_file()
    assert trained["metrics"]["cost/state_bytes"] == 2 * 16 * 4
    code, out, err = run("train", "tiny.yaml", "--json")
    assert (code, json.loads(out)["metrics"]) == (0, trained["metrics"])
    assert "trained already" in err
    code, out, err = run("eval", trained["path"], "tiny.yaml", "--json")
    assert code == 0, err
    metric = "eval/kv/exact_match"
    assert json.loads(out)["metrics"][metric] == trained["metrics"][metric]


def test_eval_names_the_nearest_model(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "models" / "gm-174c1c06" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    for given in (tmp_path / "models" / "gm", "gm"):
        code, _, err = run("eval", given, "long.yaml", "--storage", tmp_path)
        assert code == 2
        assert f"did you mean {model.parent}?" in err


def test_an_interrupted_study_says_once_how_to_go_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {"name": "cc", "state": "interrupted", "objective": {"a": "maximize"}}
    document |= {"trials": [], "best": []}
    monkeypatch.setattr("memarch.follow.run", lambda *_, **__: document)
    code, out, err = run("study", "run", "cc.yaml", "--storage", tmp_path)
    assert code == 1
    assert err == f"interrupted; `memarch study resume cc --storage {tmp_path}` goes on\n"
    assert "resume" not in out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("num_tokens: 2", "num_tokens: {choice: [2, 4]}"), "the file searches num_tokens"),
        (("task:", "variants: {a: {}, b: {train.lr: 0.1}}\ntask:"), "choose one with --variant"),
    ],
)
def test_train_wants_one_model(
    change: tuple[str, str], says: str, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY.replace(*change))
    code, _, err = run("train", file, "--storage", tmp_path)
    assert code == 2
    assert says in err


LIGHT = [["--help"], ["study", "list"], ["--version"]]
CHECKS = [["validate", "tiny.yaml"], ["schema"], ["components"]]


@pytest.mark.parametrize("arguments", [*LIGHT, *CHECKS], ids=" ".join)
def test_quick_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    code = (
        "import sys; from memarch import cli; code = cli.run(sys.argv[1:]);"
        "print(code, *sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    code_, *loaded = ended.stderr.splitlines()[-1].split()
    assert code_ == "0", ended.stderr
    heavy = {"transformers", "optuna", "ray", "mlflow", "datasets", "peft", "pandas", "scipy"}
    if arguments in LIGHT:
        heavy |= {"torch", "numpy", "pydantic"}
    assert not heavy & set(loaded)
