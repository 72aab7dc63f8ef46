"""What every construct of a study file means."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from memarch.components.errors import SpecError
from memarch.components.memory import memories
from memarch.search_spaces.environment import resolve_env
from memarch.search_spaces.ranges import Choice, Float, Int, Subset
from memarch.search_spaces.study_file import StudyFile
from memarch.studies.settings.spec import load_study

GOOD = """
study: {name: good, budget: {trials: 4}}
task: {type: kv_retrieval, pairs: 4, format: compact}
model:
  backbone: {type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4}
  segment_length: 16
train: {budget: {steps: 20}}
eval: {kv: {}}
"""
Load = Callable[..., StudyFile]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a text that extends the good file above."""
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(GOOD)

    def load_text(text: str, *sets: str, **more: Any) -> StudyFile:
        Path("case.yaml").write_text("extends: good.yaml\n" + text)
        return load_study("case.yaml", sets, **more)

    return load_text


def at(spec: Mapping[str, Any], path: str) -> Any:
    value: Any = spec
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


# Values


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("train: {lr: 3e-4}", "train.lr", 0.0003),
        ("train: {lr: 1}", "train.lr", 1.0),
        ("study: {question: off}", "study.question", "off"),
        ("study: {question: yes}", "study.question", "yes"),
        ("study: {question: 012}", "study.question", None),
        ("model: {segment_length: 0x20}", "model.segment_length", 32),
        ("model: {segment_length: 1Ki}", "model.segment_length", 1024),
        ("train: {budget: {replace: {tokens: 3.2B}}}", "train.budget.tokens", 3.2e9),
        ("train: {budget: {replace: {hours: 90min}}}", "train.budget.hours", 1.5),
        ("train: {budget: {replace: {hours: 2}}}", "train.budget.hours", 2),
        ("train: {warmup: 5%}", "train.warmup", 0.05),
        ("train: {warmup: 100}", "train.warmup", 100),
        ("study: {trial_time_limit: 12h}", "study.trial_time_limit", 43200),
        ("study: {pruner: {type: median, after: 25%}}", "study.pruner.after", 0.25),
        ("resources: {memory: 4GiB}", "resources.memory", 4 * 2**30),
        ("resources: {custom: {accelerator: 1}}", "resources.custom", {"accelerator": 1}),
        ("study: {sampler: random}", "study.sampler", {"type": "random"}),
        ("study: {seeds: {model: [1, 2]}}", "study.seeds.model", [1, 2]),
        (
            "study: {constraints: {cost/state_bytes: {max: 64KiB}}}",
            "study.constraints",
            {"cost/state_bytes": {"max": 65536}},
        ),
        ("train: {lr: {memory: 1e-3, backbone: 1e-4}}", "train.lr.backbone", 1e-4),
        ("train: {clip: null}", "train.clip", None),
        ("train: {betas: [0.8, 0.9]}", "train.betas", [0.8, 0.9]),
        ("model.backbone: {replace: {type: gpt2, n_embd: 48}}", "model.backbone.n_embd", 48),
    ],
)
def test_values(load: Load, text: str, path: str, value: Any) -> None:
    if value is None and "question" in text:
        with pytest.raises(SpecError, match="must be text, got 12"):
            load(text).resolve()
    else:
        assert at(load(text).resolve().spec, path) == value


def test_defaults_are_filled_in(load: Load) -> None:
    resolved = load("").resolve()
    assert resolved.spec["study"]["objective"] == {"eval/kv/exact_match": "maximize"}
    assert resolved.spec["train"]["batch_size"] == 32
    assert resolved.origins["train.batch_size"] == "default"
    assert resolved.origins["model.segment_length"] == "good.yaml:6"
    json.dumps(resolved.spec)


def test_a_file_without_evaluations_has_one(load: Load) -> None:
    spec = load("eval: {replace: {}}").resolve().spec
    assert list(spec["eval"]) == ["kv_retrieval"]
    assert spec["study"]["objective"] == {"eval/kv_retrieval/exact_match": "maximize"}


def test_the_name_of_a_study_is_by_default_the_files(load: Load) -> None:
    assert load("study: {replace: {}}").study["name"] == "case"


# Vars and expressions


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("vars: {n: 8}\nmodel: {segment_length: $n}", "model.segment_length", 8),
        ("vars: {n: 2, m: =n * 3 + 1}\nmodel: {segment_length: $m}", "model.segment_length", 7),
        ("vars: {n: 2}\nmodel: {segment_length: =3 * $n + n}", "model.segment_length", 8),
        ("model: {segment_length: =hidden_size // 8}", "model.segment_length", 4),
        ('model: {segment_length: "=max(2, hidden_size - 30, 1)"}', "model.segment_length", 2),
        ("model: {segment_length: =hidden_size / 8}", "model.segment_length", 4),
        ("model: {segment_length: =-(3 - 8)}", "model.segment_length", 5),
        ("vars: {n: 1k}\nmodel: {segment_length: =n // 10}", "model.segment_length", 100),
        ("train: {lr: 0.1, weight_decay: =lr / 4}", "train.weight_decay", 0.025),
        ("model: {segment_length: =num_key_value_heads + 1}", None, None),
        ("model: {segment_length: =max_position_embeddings}", "model.segment_length", 2048),
        (
            "model.memory.main: {type: armt, d_mem: =hidden_size // 4}",
            "model.memory.main.d_mem",
            8,
        ),
        ("study: {question: $$5 each}", "study.question", "$5 each"),
        ("study: {question: ==}", "study.question", "="),
        ("vars: {all: {pairs: 3}}\ntask: $all", None, None),
    ],
)
def test_vars_and_expressions(load: Load, text: str, path: str | None, value: Any) -> None:
    if path is None:
        with pytest.raises(SpecError):
            load(text).resolve()
    else:
        assert at(load(text).resolve().spec, path) == value


def test_a_var_may_be_a_whole_part(load: Load) -> None:
    file = load("vars: {mem: {type: rmt, num_tokens: {int: [1, 3]}}}\nmodel.memory: {main: $mem}")
    assert file.space() == {"num_tokens": Int(1, 3)}
    assert at(file.resolve("", {"num_tokens": 2}).spec, "model.memory.main.num_tokens") == 2


def test_vars_of_the_spec_are_those_in_use(load: Load) -> None:
    file = load("vars: {n: 8, unused: 3}\nmodel: {segment_length: $n}")
    assert file.resolve().spec["vars"] == {"n": 8}
    assert file.validate() == ["vars.unused is not used by any variant"]


# The environment


@pytest.mark.parametrize("text", ["$env{X}", "${env:X}", "$env:X", "$env", "=2 * $env"])
def test_wrong_forms_of_env_name_the_right_one(load: Load, text: str) -> None:
    with pytest.raises(SpecError, match=r"write \$env\.NAME") as caught:
        load(f'train:\n  lr: "{text}"').resolve()
    assert (caught.value.line, caught.value.path) == (3, "train.lr")


def test_the_environment_is_read_and_stored_unresolved(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QUESTION", "which?")
    monkeypatch.setenv("STEPS", "7")
    file = load(
        "vars: {steps: $env.STEPS}\n"
        "study: {question: say $env.QUESTION}\n"
        "model.memory.main:\n"
        "  store: {type: tokens, num_tokens: $env.STEPS}\n"
        "  write: {type: forward}\n"
        "train: {budget: {steps: $steps}}\n"
    )
    resolved = file.resolve()
    assert resolved.spec["study"]["question"] == "say which?"
    assert resolved.spec["train"]["budget"]["steps"] == 7
    assert resolved.record["study"]["question"] == "say $env.QUESTION"
    assert resolved.record["train"]["budget"]["steps"] == "$env.STEPS"
    assert resolved.record["model"]["memory"]["main"]["num_tokens"] == "$env.STEPS"
    assert resolve_env(resolved.record)["study"]["question"] == "say which?"
    monkeypatch.setenv("STEPS", "8")
    assert file.resolve().hash == resolved.hash


# Ranges and names of parameters


def test_ranges(load: Load) -> None:
    file = load(
        "vars: {width: {choice: [16, 32]}, idle: {int: [1, 2]}}\n"
        "model: {segment_length: {int: [16, 64], log: true}, memory: {main: {type: armt,\n"
        "        d_mem: $width, layers: {subset: [0, 1], size: [1, 2]}}}}\n"
        "train: {lr: {float: [1e-3, 1e-2], log: true}, warmup: {float: [0, 1%], step: 0.25%},\n"
        "        batch_size: {int: [8, 16], step: 4}}\n"
    )
    assert file.space() == {
        "width": Choice((16, 32)),
        "segment_length": Int(16, 64, log=True),
        "layers": Subset((0, 1), 1, 2),
        "lr": Float(1e-3, 1e-2, log=True),
        "warmup": Float(0, 0.01, step=0.0025),
        "batch_size": Int(8, 16, step=4),
    }
    draws = {"width": 16, "segment_length": 20, "layers": [1], "lr": 0.002}
    resolved = file.resolve("", draws | {"warmup": 0.005, "batch_size": 12})
    assert resolved.spec["model"]["memory"]["main"]["layers"] == [1]
    assert resolved.spec["vars"] == {"width": 16}
    assert resolved.origins["model.memory.main.d_mem"] == "draw"
    assert resolved.origins["train.lr"] == "draw"


def test_draws_are_checked(load: Load) -> None:
    file = load("train: {lr: {float: [1e-3, 1e-2]}}")
    with pytest.raises(SpecError, match="no value was drawn for 'lr'"):
        file.resolve()
    with pytest.raises(SpecError, match=r"the value 0.5 lies outside the range"):
        file.resolve("", {"lr": 0.5})


def test_a_choice_may_hold_lists_maps_and_references(load: Load) -> None:
    file = load(
        "vars: {two: 2}\n"
        "model.memory.main:\n"
        "  type: armt\n"
        "  layers: {choice: [all, [0], {every: $two, offset: 1}]}\n"
    )
    assert file.space() == {"layers": Choice(("all", [0], {"every": 2, "offset": 1}))}
    assert file.validate() == []
    spec = file.resolve("", {"layers": [0]}).spec
    assert spec["model"]["memory"]["main"]["layers"] == [0]


def test_ends_of_a_range_may_be_vars(load: Load) -> None:
    file = load("vars: {most: 9}\ntask: {pairs: {int: [1, $most]}}")
    assert file.space() == {"pairs": Int(1, 9)}


def test_names_are_the_shortest_that_are_unique(load: Load) -> None:
    file = load(
        "vars: {rank: {choice: [1, 2]}}\n"
        "model.memory:\n"
        "  low: {type: rmt, num_tokens: {int: [1, 2]}}\n"
        "  high: {type: rmt, num_tokens: {int: [1, 4]}, write: {steps: {int: [1, 2]}}}\n"
        "train: {lr: {float: [0.1, 0.2]}, trainable: lora, lora: {rank: {choice: [4, 8]}}}\n"
        "task: {pairs: $rank}\n"
    )
    assert list(file.space()) == [
        "rank", "low.num_tokens", "high.num_tokens", "steps", "lr", "lora.rank",
    ]  # fmt: skip


# Variants


def test_variants_are_patches(load: Load) -> None:
    file = load(
        "vars: {n: {choice: [2, 4]}}\n"
        "variants:\n"
        "  none: {}\n"
        "  rmt: {model.memory.main: {type: rmt, num_tokens: $n}, train: {lr: 0.5}}\n"
        "  long: {vars.n: 8, model: {memory: {main: {type: rmt, num_tokens: $n}}}}\n"
    )
    assert file.variants == ["none", "rmt", "long"]
    assert [list(file.space(name)) for name in file.variants] == [[], ["n"], []]
    assert file.resolve("none").spec["model"]["memory"] == {}
    rmt = file.resolve("rmt", {"n": 4})
    assert rmt.spec["model"]["memory"]["main"]["num_tokens"] == 4
    assert rmt.spec["train"]["budget"]["steps"] == 20
    assert rmt.origins["train.lr"] == "variant rmt"
    assert file.resolve("long").spec["model"]["memory"]["main"]["num_tokens"] == 8
    with pytest.raises(SpecError, match="did you mean 'long'"):
        file.resolve("lng")


def test_maps_merge_lists_replace_and_replace_forces(load: Load) -> None:
    file = load(
        "model.memory.main: {type: armt, d_mem: 8, layers: [0, 1]}\n"
        "variants:\n"
        "  merged: {model.memory.main: {layers: [1]}}\n"
        "  forced: {model.memory.main: {replace: {type: rmt}}}\n"
        "  gone: {model.memory: {replace: {}}}\n"
    )
    merged = file.resolve("merged").spec["model"]["memory"]["main"]
    assert (merged["d_mem"], merged["layers"]) == (8, [1])
    assert file.resolve("forced").spec["model"]["memory"]["main"]["type"] == "tokens"
    assert file.resolve("gone").spec["model"]["memory"] == {}


def test_one_file_without_variants_is_one_model(load: Load) -> None:
    file = load("")
    assert file.variants == [""]
    assert file.space() == {}
    assert file.validate() == []


def test_a_range_replaces_a_range(load: Load) -> None:
    file = load(
        "train: {lr: {float: [0.1, 0.2], log: true}}\nvariants: {a: {train.lr: {choice: [0.5]}}}"
    )
    assert file.space("a") == {"lr": Choice((0.5,))}


# Extending, overriding, precedence


def test_precedence(load: Load) -> None:
    text = "train: {batch_size: 16}\nvariants: {a: {train.batch_size: {choice: [24, 48]}}, b: {}}"
    assert load("variants: {b: {}}").resolve("b").spec["train"]["batch_size"] == 32
    assert load(text).resolve("b").spec["train"]["batch_size"] == 16
    drawn = load(text).resolve("a", {"batch_size": 48})
    assert drawn.spec["train"]["batch_size"] == 48
    over = load(text, "train.batch_size=64")
    assert over.space("a") == {}
    assert over.resolve("a").spec["train"]["batch_size"] == 64
    assert over.resolve("a").origins["train.batch_size"] == "--set"


def test_set_may_give_a_range_a_map_or_a_var(load: Load) -> None:
    text = "vars: {n: {int: [1, 4]}}\nmodel.memory.main: {type: rmt, num_tokens: $n}"
    assert load(text, "train.lr={float: [0.1, 0.2]}").space() == {
        "n": Int(1, 4),
        "lr": Float(0.1, 0.2),
    }
    assert load(text, "vars.n=3").resolve().spec["model"]["memory"]["main"]["num_tokens"] == 3
    spec = load(text, "model.memory.main={replace: {type: armt, d_mem: 4}}").resolve().spec
    assert spec["model"]["memory"]["main"]["d_mem"] == 4
    assert load(text, "vars.n=3", "train.lr=3e-4").resolve().spec["train"]["lr"] == 3e-4


def test_variants_of_a_base_are_kept_and_changed(load: Load, tmp_path: Path) -> None:
    load("variants: {a: {train.lr: 0.1, train.clip: 2}}")
    Path("case.yaml").rename("base.yaml")
    Path("top.yaml").write_text("extends: base.yaml\nvariants: {a: {train.lr: 0.2}, b: {}}\n")
    file = load_study("top.yaml")
    assert file.variants == ["a", "b"]
    assert file.resolve("a").spec["train"]["lr"] == 0.2
    assert file.resolve("a").spec["train"]["clip"] == 2
    Path("top.yaml").write_text("extends: base.yaml\nvariants: {replace: {b: {}}}\n")
    assert load_study("top.yaml").variants == ["b"]


def test_a_file_may_extend_a_trial(load: Load) -> None:
    trial = load("train: {lr: 0.25}\neval: {kv: {sweep: {task.pairs: [1, 2]}}}").resolve().spec
    asked = []

    def find_trial(study: str, number: int | str) -> dict[str, Any]:
        asked.append((study, number))
        return trial

    Path("next.yaml").write_text("extends: {study: first, trial: best}\ntrain: {clip: 3}\n")
    resolved = load_study("next.yaml", find_trial=find_trial).resolve()
    assert asked == [("first", "best")]
    assert resolved.spec["train"] == trial["train"] | {"clip": 3}
    assert resolved.origins["train.lr"] == "study first trial best"


def test_trials_are_looked_up_in_the_storage(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMARCH_STORAGE", str(tmp_path / "runs"))
    spec = load("train: {lr: 0.125}").resolve().spec
    folder = tmp_path / "runs" / "studies" / "first"
    (folder / "trials" / "007").mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps({"name": "first", "best": [7]}))
    (folder / "trials" / "007" / "spec.json").write_text(json.dumps(spec))
    for trial in ("best", "7"):
        Path("next.yaml").write_text(f"extends: {{study: first, trial: {trial}}}\n")
        file = load_study("next.yaml")
        assert file.resolve().spec["train"]["lr"] == 0.125
        assert file.resolve().hash == load("train: {lr: 0.125}").resolve().hash


# Equal specs, notes, overrides of a trial


def test_equal_specs_have_equal_hashes(load: Load) -> None:
    preset = load("model.memory.main: {type: gradmem, num_tokens: 4}").resolve()
    axes = load(
        "vars: {n: 4, idle: 7}\nstudy: {name: other, question: Why?}\nresources: {cpus: 2}\n"
        "model.memory.main: {store: {type: tokens, num_tokens: $n}, write: {type: gradient}}\n"
    ).resolve()
    gradient = preset.spec["model"]["memory"]["main"]["write"]
    assert (preset.hash == axes.hash) == (gradient == axes.spec["model"]["memory"]["main"]["write"])
    assert load("").resolve().hash == load("train: {clip: 1}").resolve().hash
    assert load("").resolve().hash != load("train: {clip: 2}").resolve().hash


def test_a_searched_value_that_changes_nothing_is_pointed_out(load: Load) -> None:
    file = load("vars: {n: {int: [1, 4]}}\nmodel: {segment_length: =16 + 0 * n}")
    assert file.validate() == ["'n' is searched, but changes nothing"]


def test_equal_variants_are_pointed_out(load: Load) -> None:
    file = load("variants: {a: {}, b: {train.clip: 1.0}}")
    assert file.validate() == ["variants 'a' and 'b' are the same model and training"]


def test_at_replaces_vars_and_keys_of_a_trial(load: Load) -> None:
    file = load(
        "vars: {n: {int: [1, 4]}}\nmodel.memory.main: {type: rmt, num_tokens: $n}\n"
        "study: {seeds: {model: [3, 4]}}\n"
    )
    resolved = file.resolve("", {"n": 2})
    assert resolved.at({"vars.n": 3}).spec["model"]["memory"]["main"]["num_tokens"] == 3
    assert resolved.at({"study.seeds.model": 4}).spec["study"]["seeds"]["model"] == 4
    assert resolved.at({"train.lr": 0.5}).spec["model"] == resolved.spec["model"]


# Sweeps and stages


def test_a_sweep_becomes_concrete_points(load: Load) -> None:
    file = load(
        "vars: {n: 2}\n"
        "variants: {rmt: {model.memory.main: {type: rmt, write: {steps: $n}}}, none: {}}\n"
        "eval: {kv: {sweep: {vars.n: [1, 2], task.pairs: [4, 8]}}}\n"
    )
    points = file.resolve("rmt").spec["eval"]["kv"]["points"]
    assert [point["name"] for point in points] == [
        "n-1_pairs-4", "n-1_pairs-8", "n-2_pairs-4", "n-2_pairs-8",
    ]  # fmt: skip
    assert points[1]["spec"]["model"]["memory"]["main"]["write"]["steps"] == 1
    assert points[1]["spec"]["task"]["pairs"] == 8
    assert points[2]["spec"] == {}
    # A var that a variant does not use is not swept there.
    names = [point["name"] for point in file.resolve("none").spec["eval"]["kv"]["points"]]
    assert names == ["pairs-4", "pairs-8"]


def test_an_evaluations_task_may_differ_from_training(load: Load) -> None:
    spec = (
        load("eval: {more: {task: {pairs: 8}}, other: {task: {type: mqar}}, wide: {task: same}}")
        .resolve()
        .spec
    )
    assert spec["eval"]["more"]["task"] == spec["task"] | {"pairs": 8}
    assert spec["eval"]["other"]["task"]["type"] == "mqar"
    assert spec["eval"]["wide"]["task"] == "same"


def test_stages_become_concrete_values(load: Load) -> None:
    stages = (
        load(
            "vars: {n: 4}\ntask: {pairs: $n}\n"
            "train:\n"
            "  stages:\n"
            "    - {set: {vars.n: 1}, until: {exact_match: 0.9}}\n"
            "    - {name: harder, set: {task.pairs: 2, train.lr: 5e-4}, steps: 5}\n"
        )
        .resolve()
        .spec["train"]["stages"]
    )
    assert stages[0]["set"] == {"task.pairs": 1}
    assert stages[1]["set"] == {"task.pairs": 2, "train.lr": 5e-4}
    assert stages[1]["name"] == "harder"


# Plugins


def test_a_plugin_registers_a_memory(load: Load, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "plugin_for_files.py").write_text(
        "from typing import Literal\n"
        "from memarch.components.memory import LayeredSettings, Memory, memories\n\n"
        "@memories.register('plugin_for_files')\n"
        "class Mine(Memory):\n"
        "    'One that only has settings.'\n"
        "    site = 'layer'\n"
        "    class Settings(LayeredSettings):\n"
        "        type: Literal['plugin_for_files']\n"
        "        size: int = 3\n"
        "    def init_state(self, batch, like): return {}\n"
        "    def step(self, state, x, inner, segment): return inner(x), state\n"
    )
    text = "plugins: [folder/plugin_for_files.py]\nmodel.memory.main: {type: plugin_for_files}\n"
    file = load(text)
    assert file.plugins == [tmp_path / "folder" / "plugin_for_files.py"]
    spec = file.resolve().spec
    assert spec["model"]["memory"]["main"]["size"] == 3
    assert spec["plugins"] == [str(file.plugins[0])]
    with pytest.raises(SpecError) as caught:
        load(text, "model.memory.main.sise=1").resolve()
    assert "did you mean 'size'" in caught.value.message
    memories.remove("plugin_for_files")
