"""A model's description: two forms of a memory, backbones by their config's keys, clear errors."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from memarch.arch.spec import mechanism, normalize_memory, parse_model_spec
from memarch.components.errors import SpecError
from memarch.components.memory import LayeredSettings, Memory, memories
from memarch.components.strict import Strict


class Plain(Strict):
    type: Literal["plain"]
    rounds: int = 1


class Steps(Strict):
    type: Literal["steps"]
    steps: Annotated[int, Field(ge=1)] = 1
    step_size: float = 1.0


class NoteMemory(Memory):
    """A memory that exists only to be described."""

    site = "layer"

    class Settings(LayeredSettings):
        type: Literal["note"]
        size: Annotated[int, Field(ge=1)] = 4
        write: Annotated[Plain | Steps, Field(discriminator="type")] = Plain(type="plain")

    def init_state(self, batch: int, like: Any) -> Any:
        raise NotImplementedError

    def step(self, state: Any, x: Any, inner: Any, segment: Any) -> Any:
        raise NotImplementedError


@pytest.fixture(autouse=True, scope="module")
def _note() -> Any:
    list(memories)  # registers the built-in ones first
    before = dict(memories._entries)
    memories.register("note")(NoteMemory)
    memories.preset("stepped", NoteMemory, {"size": 8, "write": {"type": "steps", "steps": 3}})
    yield
    memories._entries.clear()
    memories._entries.update(before)


BACKBONE = {"type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def model(**changes: Any) -> dict[str, Any]:
    return {"backbone": BACKBONE, "segment_length": 16} | changes


def test_defaults_and_round_trip() -> None:
    spec = parse_model_spec(model(memory={"main": {"type": "stepped", "layers": [1]}}))
    assert (spec.schedule, spec.impl) == ("auto", "auto")
    canonical = spec.canonical()
    assert canonical["memory"]["main"] == {
        "type": "note",
        "layers": [1],
        "size": 8,
        "write": {"type": "steps", "steps": 3, "step_size": 1.0},
    }
    again = parse_model_spec(json.loads(json.dumps(canonical)))
    assert again == spec
    assert again.canonical() == canonical


def test_preset_and_axes_mean_the_same() -> None:
    preset = {"type": "stepped", "write": {"step_size": 2}}
    axes = {
        "store": {"type": "note", "size": 8},
        "write": {"type": "steps", "steps": 3, "step_size": 2.0},
    }
    specs = [parse_model_spec(model(memory={"main": form})) for form in (preset, axes)]
    assert specs[0] == specs[1]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"type": "gradmem"}, "gradmem"),
        ({"store": {"type": "tokens"}, "write": {"type": "gradient"}}, "gradmem"),
        ({"type": "gradmem", "write": {"type": "forward"}}, "rmt"),
        ({"type": "armt"}, "armt"),
        ({"type": "associative", "write": {"type": "hebbian"}}, "associative"),
        ({"type": "deltanet", "heads": 2}, "deltanet"),
        ({"type": "gated_deltanet", "heads": 2, "output_gate": False}, "gated_deltanet"),
        ({"type": "kv_cache"}, "full_attention"),
        ({"type": "sliding_window", "window": 8}, "sliding_window"),
        ({"type": "note", "write": {"type": "steps"}}, "stepped"),
        ({"type": "note"}, "note"),
    ],
)
def test_a_memory_is_called_what_users_call_it(given: dict[str, Any], name: str) -> None:
    spec = parse_model_spec(model(memory={"main": given}))
    assert mechanism(spec.canonical()) == name


def test_several_memories_are_called_by_all_their_names() -> None:
    memories = {"outer": {"type": "rmt"}, "inner": {"type": "armt"}}
    assert mechanism(parse_model_spec(model(memory=memories)).canonical()) == "rmt+armt"
    assert mechanism(parse_model_spec(model()).canonical()) == "none"


def test_another_writer_takes_nothing_over_from_the_presets() -> None:
    given = {"type": "stepped", "write": {"type": "plain", "rounds": 2}}
    assert normalize_memory(given) == {
        "type": "note",
        "size": 8,
        "write": {"type": "plain", "rounds": 2},
    }


@pytest.mark.parametrize(
    ("changes", "path", "fragment"),
    [
        ({"segment_lenght": 1}, "segment_lenght", "did you mean 'segment_length'"),
        ({"segment_length": 0}, "segment_length", "at least 1"),
        ({"segment_length": "long"}, "segment_length", "must be an integer, got 'long'"),
        ({"segment_length": True}, "segment_length", "must be an integer, got true"),
        ({"schedule": "diagnal"}, "schedule", "did you mean 'diagonal'"),
        ({"memory": {"main": {"type": "nota"}}}, "memory.main.type", "did you mean 'note'"),
        ({"memory": {"main": {}}}, "memory.main", "needs `type` or `store`"),
        ({"memory": {"a b": {"type": "note"}}}, "memory.a b", "text like"),
        ({"memory": {"main": {"type": "note", "sise": 1}}}, "memory.main.sise", "'size'"),
        (
            {"memory": {"main": {"type": "note", "write": {"type": "step"}}}},
            "memory.main.write.type",
            "unknown type 'step'; did you mean 'steps'?",
        ),
        (
            {"memory": {"main": {"type": "note", "write": {"steps": 2}}}},
            "memory.main.write.type",
            "is required; known: plain, steps",
        ),
        (
            {"memory": {"main": {"type": "note", "write": {"type": "plain", "steps": 2}}}},
            "memory.main.write.steps",
            "unknown key 'steps' for type 'plain'",
        ),
        (
            {"memory": {"main": {"store": {"type": "note", "size": 0}}}},
            "memory.main.store.size",
            "at least 1, got 0",
        ),
        (
            {"memory": {"main": {"store": {"type": "stepped"}}}},
            "memory.main.store.type",
            "is a preset",
        ),
        (
            {"memory": {"main": {"store": {"type": "note"}, "type": "note"}}},
            "memory.main",
            "both `type` and `store`",
        ),
        (
            {"memory": {"main": {"type": "note", "layers": "al"}}},
            "memory.main.layers",
            "must be 'all' or a list or a map, got 'al'",
        ),
        (
            {"memory": {"main": {"type": "note", "layers": {"evry": 2}}}},
            "memory.main.layers.evry",
            "did you mean 'every'",
        ),
        (
            {"memory": {"main": {"type": "note", "layers": [0, 2]}}},
            "memory.main.layers",
            "the backbone has 2 layers, 0 to 1, got 2",
        ),
        ({"backbone": {"hidden_size": 32}}, "backbone", "either `type`"),
        ({"backbone": {"type": "lama"}}, "backbone.type", "did you mean 'llama'"),
        ({"backbone": BACKBONE | {"hiden_size": 8}}, "backbone.hiden_size", "'hidden_size'"),
        ({"backbone": BACKBONE | {"hidden_size": "big"}}, "backbone.hidden_size", "an integer"),
        (
            {"backbone": BACKBONE | {"num_attention_heads": 3}},
            "backbone.num_attention_heads",
            "must divide hidden_size, got num_attention_heads=3, hidden_size=32",
        ),
        (
            {"backbone": BACKBONE | {"num_key_value_heads": 3}},
            "backbone.num_key_value_heads",
            "must divide num_attention_heads",
        ),
        ({"backbone": BACKBONE | {"num_attention_heads": 32}}, "backbone", "must be even"),
        ({"backbone": {"pretrained": "./no-such"}}, "backbone.pretrained", "there is no folder"),
        (
            {"backbone": {"pretrained": "x/y", "hidden_size": 8}},
            "backbone.hidden_size",
            "pretrained backbone",
        ),
        (
            {"backbone": {"type": "gpt2", "n_positions": 8}, "segment_length": 16},
            "segment_length",
            "at most 8",
        ),
    ],
)
def test_errors_name_the_key(changes: dict[str, Any], path: str, fragment: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_model_spec(model(**changes), "model")
    assert caught.value.path == f"model.{path}"
    assert fragment in caught.value.message


def test_units_count_as_numbers_where_a_number_is_expected() -> None:
    spec = parse_model_spec(
        model(segment_length="2Ki", memory={"m": {"type": "note", "size": "1k"}})
    )
    assert spec.segment_length == 2048
    assert spec.canonical()["memory"]["m"]["size"] == 1000


def test_synonyms_of_a_config_key_become_its_real_name() -> None:
    short = {"type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4}
    long = {"type": "gpt2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    specs = [parse_model_spec(model(backbone=backbone)) for backbone in (short, long)]
    assert specs[0] == specs[1]
    assert specs[0].backbone.config == {"n_embd": 32, "n_layer": 2, "n_head": 4}
    assert specs[0].backbone.value("hidden_size") == 32
    with pytest.raises(SpecError, match="another name"):
        parse_model_spec(model(backbone=short | {"hidden_size": 32}))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "qwen3"])
def test_every_key_of_a_real_configuration_is_known(kind: str) -> None:
    from transformers import AutoConfig

    from memarch.arch.backbone_keys import config_keys

    real = set(AutoConfig.for_model(kind).to_dict())
    known = config_keys(kind)
    assert {"vocab_size", "hidden_size", "num_hidden_layers"} <= {*known.keys, *known.synonyms}
    assert set(known.keys) - real <= {"rope_theta", "rope_scaling", "rotary_pct", "rotary_emb_base"}


def test_reading_a_spec_imports_no_transformers() -> None:
    code = (
        "import sys\n"
        "from memarch.arch.backbone_keys import config_keys\n"
        "from memarch.arch.settings import parse\n"
        "import memarch.arch.spec\n"
        "config_keys('llama')\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("memory", "schedule", "says"),
    [
        ("rmt", "diagonal", "'diagonal' is impossible: memory 'm' carries its state from the top"),
        ("gradmem", "layerwise", "'layerwise' is impossible: memory 'm' carries its state"),
        ("armt", "layerwise", "'layerwise' is impossible: memory 'm' takes one segment at a time"),
    ],
)
def test_an_impossible_order_is_refused_before_anything_is_built(
    memory: str, schedule: str, says: str
) -> None:
    backbone = {"type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    raw = {"backbone": backbone, "memory": {"m": {"type": memory}}, "segment_length": 4}
    with pytest.raises(SpecError, match=says) as caught:
        parse_model_spec(raw | {"schedule": schedule}, "model")
    assert caught.value.path == "model.schedule"
