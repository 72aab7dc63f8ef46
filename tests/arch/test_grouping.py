"""Grouped cells stay equal to single ones through all that happens to a model in its life."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from memarch.arch.build import build_model
from memarch.arch.exactness import assert_agree, results
from memarch.arch.model import MemarchModel
from memarch.studies.training.optimizers import add_lora, merge_lora

MEMORY: dict[str, Any] = {
    "a": {"type": "armt", "d_mem": 4, "num_tokens": 2, "layers": [0, 2, 3]},
    "d": {"type": "gated_deltanet", "heads": 2, "layers": [1, 2]},
}
LORA = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "down_proj"]}
IDS = torch.randint(0, 23, (2, 15), generator=torch.Generator().manual_seed(1))


def build(dtype: torch.dtype = torch.float64) -> MemarchModel:
    backbone = {
        "type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    spec = {"backbone": backbone, "memory": MEMORY, "segment_length": 4}
    model = build_model(spec, vocab_size=23, seed=3).to(dtype)
    return with_noise(model)


def with_noise(model: MemarchModel) -> MemarchModel:
    """Parameters that start at zero must not hide an error."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise.to(parameter.dtype))
    return model


def assert_orders_agree(model: MemarchModel) -> None:
    def run(schedule: str) -> Callable[[], dict[str, torch.Tensor]]:
        other = model.respec(model.spec.model_copy(update={"schedule": schedule}))
        return lambda: results(other, IDS)

    assert_agree(model, run("sequential"), run("diagonal"))


def stepped(model: MemarchModel) -> MemarchModel:
    """One step of training in the diagonal order, so that weights have moved since they stacked."""
    model = model.respec(model.spec.model_copy(update={"schedule": "diagonal"}))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    return model


def copied(model: MemarchModel, folder: Path) -> MemarchModel:
    return copy.deepcopy(stepped(model))


def pickled(model: MemarchModel, folder: Path) -> MemarchModel:
    return pickle.loads(pickle.dumps(stepped(model)))


def in_float32(model: MemarchModel, folder: Path) -> MemarchModel:
    return stepped(model).float()


def saved_and_loaded(model: MemarchModel, folder: Path) -> MemarchModel:
    stepped(model).save_pretrained(folder)
    return MemarchModel.from_pretrained(folder, dtype=torch.float64)


def with_adapters(model: MemarchModel, folder: Path) -> MemarchModel:
    stepped(model)
    add_lora(model.backbone, LORA)
    return stepped(with_noise(model.double()))


def merged(model: MemarchModel, folder: Path) -> MemarchModel:
    model = with_adapters(model, folder)
    merge_lora(model.backbone)
    return model


def resumed(model: MemarchModel, folder: Path) -> MemarchModel:
    """What a checkpoint does: a new model takes another one's weights and goes on."""
    other = build()
    other.load_state_dict(stepped(model).state_dict())
    return stepped(other)


def assigned(model: MemarchModel, folder: Path) -> MemarchModel:
    other = build()
    other.load_state_dict(stepped(model).state_dict(), assign=True)
    return stepped(other)


def with_other_weights(model: MemarchModel, folder: Path) -> MemarchModel:
    """Weights changed behind autograd's back, between two forwards."""
    stepped(model)
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    return model


LIVES = [
    copied,
    pickled,
    in_float32,
    saved_and_loaded,
    with_adapters,
    merged,
    resumed,
    assigned,
    with_other_weights,
]


@pytest.mark.parametrize("live", LIVES, ids=lambda live: live.__name__)
def test_orders_agree_after(
    live: Callable[[MemarchModel, Path], MemarchModel], tmp_path: Path
) -> None:
    assert_orders_agree(live(build(), tmp_path))


def test_bfloat16_is_no_further_from_the_truth_in_groups() -> None:
    model = build(torch.bfloat16)
    truth = copy.deepcopy(model).double()

    def logits(model: MemarchModel, schedule: str) -> torch.Tensor:
        other = model.respec(model.spec.model_copy(update={"schedule": schedule}))
        with torch.no_grad():
            return other(IDS).logits.double()

    exact = logits(truth, "sequential")
    error = {
        schedule: (logits(model, schedule) - exact).square().mean().sqrt()
        for schedule in ("sequential", "diagonal")
    }
    assert error["diagonal"] <= 1.2 * error["sequential"]


def test_checkpointing_changes_nothing_and_keeps_less() -> None:
    model = build()
    for schedule in ("sequential", "diagonal"):
        plain = model.respec(model.spec.model_copy(update={"schedule": schedule}))
        frugal = copy.deepcopy(plain)
        frugal.gradient_checkpointing_enable()
        assert_agree(model, lambda m=plain: results(m, IDS), lambda m=frugal: results(m, IDS))
        assert kept_bytes(frugal) < kept_bytes(plain) / 2
        frugal.gradient_checkpointing_disable()
        assert kept_bytes(frugal) > 0.9 * kept_bytes(plain)


def kept_bytes(model: MemarchModel) -> int:
    """Bytes that autograd keeps between the passes, each storage once."""
    storages: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(IDS, labels=IDS).loss
    assert loss.requires_grad
    return sum(storages.values())
