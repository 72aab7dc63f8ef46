"""ARMT, GradMem and RMT against reference tensors of their authors' implementations, in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from memarch.arch.build import build_model
from memarch.arch.model import MemarchModel
from memarch.arch.run import Cut, Run
from memarch.arch.state import RunState

FOLDER = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-9


class Golden:
    """One file: its configuration, and its tensors by kind."""

    def __init__(self, name: str) -> None:
        with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
            self.config: dict[str, Any] = json.loads(file.metadata()["config"])
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def kind(self, prefix: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(f"{prefix}."): value
            for key, value in self.tensors.items()
            if key.startswith(f"{prefix}.")
        }


def assert_equal(name: str, ours: Tensor, theirs: Tensor) -> None:
    error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-300)
    assert error <= TOLERANCE, f"{name}: relative error {error:.2e}"


def build(
    golden: Golden, memory: dict[str, Any], segment_length: int, schedule: str = "auto"
) -> MemarchModel:
    config = golden.config
    backbone = {
        "type": "llama",
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["layers"],
        "num_attention_heads": config["heads"],
        "num_key_value_heads": config.get("kv_heads", config["heads"]),
        "intermediate_size": config["intermediate"],
        "vocab_size": config["vocab"],
        "rms_norm_eps": config["rms_norm_eps"],
        "tie_word_embeddings": False,
    }
    spec = {
        "backbone": backbone,
        "memory": {"m": memory},
        "segment_length": segment_length,
        "schedule": schedule,
    }
    return build_model(spec).double()


def load(model: MemarchModel, names: dict[str, str], weights: dict[str, Tensor]) -> None:
    """Give every parameter its reference weight; `names` maps ours to theirs."""
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(names)
    assert set(names.values()) == set(weights)
    with torch.no_grad():
        for ours, theirs in names.items():
            parameters[ours].copy_(weights[theirs])


def check_gradients(model: MemarchModel, names: dict[str, str], golden: Golden) -> None:
    theirs, parameters = golden.kind("grad"), dict(model.named_parameters())
    for ours, name in names.items():
        if name not in theirs:
            assert parameters[ours].grad is None or not parameters[ours].grad.any(), ours
            continue
        assert parameters[ours].grad is not None, f"{ours} has no gradient"
        assert_equal(f"gradient of {ours}", parameters[ours].grad, theirs[name])


# ARMT: its layers are named `layers.N.layer`, its projections W_mq, W_mk, W_mv, W_mb.

ARMT_PARTS = {
    "query.weight": "W_mq.weight",
    "key.weight": "W_mk.weight",
    "value.weight": "W_mv.weight",
    "beta.weight": "W_mb.weight",
    "beta.bias": "W_mb.bias",
}


def armt_name(ours: str) -> str:
    if ours == "write_tokens":
        return "memory"
    if ours.startswith("memories."):
        _, _, layer, part = ours.split(".", 3)
        return f"model.model.layers.{layer}.{ARMT_PARTS[part]}"
    parts = ours.removeprefix("backbone.").split(".")
    if parts[:2] == ["model", "layers"]:
        parts.insert(3, "layer")
    return "model." + ".".join(parts)


@pytest.mark.parametrize("schedule", ["sequential", "diagonal"])
@pytest.mark.parametrize("name", ["armt_llama_small", "armt_llama_gqa_ragged"])
def test_armt_reproduces_the_authors_tensors(name: str, schedule: str) -> None:
    golden = Golden(name)
    config = golden.config
    memory = {
        "type": "armt",
        "d_mem": config["d_mem"],
        "num_tokens": config["memory_tokens"],
        "feature_map": f"dpfp{config['nu']}",
        "write": {"correction": config["correction"]},
    }
    model = build(golden, memory, config["segment_length"], schedule)
    names = {ours: armt_name(ours) for ours, _ in model.named_parameters()}
    load(model, names, golden.kind("weight"))
    ids = golden["input_ids"]

    assert_equal("logits", model(ids).logits, golden["logits"])
    output = model(ids, labels=ids)
    assert_equal("loss", output.loss, golden["loss"])
    output.loss.backward()
    check_gradients(model, names, golden)
    for key, value in golden.kind("state").items():
        segment, layer, kind = key.split(".")
        written = model.write(ids[:, : (int(segment[7:]) + 1) * config["segment_length"]])
        ours = written["m.matrix" if kind == "A" else "m.normalizer"][:, int(layer[5:])]
        assert_equal(key, ours, value.view_as(ours))


# GradMem and the two-segment RMT: a context is written, a query read from the memory alone.

TOKEN_PARTS = {
    "tokens": "mem",
    "projection.weight": "mem_proj.weight",
    "projection.bias": "mem_proj.bias",
    "head.weight": "write_head.weight",
    "controls.write_start": "write_st",
    "controls.write_end": "write_end",
    "controls.read_start": "read_st",
    "controls.read_end": "read_end",
}


def token_name(ours: str) -> str:
    if ours.startswith("memories.m."):
        return TOKEN_PARTS[ours.removeprefix("memories.m.")]
    return "model." + ours.removeprefix("backbone.")


class Spy:
    """A stack that keeps the hidden states of the memory's positions too."""

    def __init__(self, stack: Any) -> None:
        self.stack, self.losses, self.logits = stack, stack.losses, stack.logits

    def __call__(self, x: Tensor, valid: Tensor | None) -> Tensor:
        self.hidden = self.stack(x, valid)
        return self.hidden


def read_from_memory(
    model: MemarchModel, state: RunState, query: Tensor, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """Logits over [memory; query], the memory's last position included: `[B, Q + 1, V]`."""
    memory = model.memories["m"]
    step, spies = memory.step, []

    def spying_step(state: Any, x: Tensor, inner: Any, segment: Any) -> Any:
        spies.append(Spy(inner))
        return step(state, x, spies[-1], segment)

    monkeypatch.setattr(memory, "step", spying_step)
    Run(model).over([Cut(query)], state, schedule="sequential", answers=True, write_last=False)
    return model.view.head(spies[0].hidden[:, -query.shape[1] - 1 :])


GRADMEM = {
    "gradmem_second_order": {"mode": "second"},
    "gradmem_first_order": {"mode": "first"},
    "gradmem_no_meta_gradient": {"mode": "none"},
    "gradmem_write_head_projection_control": {
        "mode": "second",
        "head": "separate",
        "projection": "shared",
        "control_tokens": 1,
        "loss_weight": 0.5,
    },
}


@pytest.mark.parametrize("name", GRADMEM)
def test_gradmem_reproduces_the_authors_tensors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden(name)
    config = golden.config
    write = {"steps": config["steps"], "step_size": config["inner_lr"], **GRADMEM[name]}
    memory = {"type": "gradmem", "num_tokens": config["memory_tokens"], "write": write}
    context, query = golden["context_input_ids"], golden["query_input_ids"]
    model = build(golden, memory, context.shape[1])
    names = {ours: token_name(ours) for ours, _ in model.named_parameters()}
    load(model, names, golden.kind("weight"))

    run = Run(model)
    state = model._fresh(len(context))
    cut = Cut(context, context != config["pad_token_id"])
    _, state = run.over([cut], state, schedule="sequential", answers=False, write_last=True)
    assert_equal("memory", state.outer["m"]["tokens"], golden["memory"])
    logits = read_from_memory(model, state, query, monkeypatch)
    assert_equal("logits", logits, golden["logits"])
    loss = F.cross_entropy(logits[:, :-1].mT, golden["labels"])
    assert_equal("target loss", loss, golden["stat.target_loss"])
    loss = loss + sum(auxiliary.mean() for auxiliary in run.losses)
    assert_equal("loss", loss, golden["loss"])
    loss.backward()
    check_gradients(model, names, golden)


@pytest.mark.parametrize(
    "name", ["rmt_two_segment_forward_write", "rmt_two_segment_repeated_write"]
)
def test_rmt_reproduces_the_authors_tensors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden(name)
    config = golden.config
    projection = "shared" if config.get("use_mem_proj") else "none"
    write = {"steps": config["write_passes"], "projection": projection}
    memory = {"type": "rmt", "num_tokens": config["memory_tokens"], "write": write}
    context, query = golden["context_input_ids"], golden["query_input_ids"]
    model = build(golden, memory, context.shape[1])
    names = {ours: token_name(ours) for ours, _ in model.named_parameters()}
    load(model, names, golden.kind("weight"))

    state = model.write(context, context != config["pad_token_id"])
    assert_equal("memory", state["m.tokens"], golden["memory"])
    output = model(query, labels=golden["labels"], memory=state)
    assert_equal("loss", output.loss, golden["loss"])
    assert_equal("logits", model(query, memory=state).logits, golden["logits"])
    output.loss.backward()
    check_gradients(model, names, golden)
