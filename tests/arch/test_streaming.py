"""An input of any length, in blocks, is read in constant memory; equal steps run from buffers."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from memarch.arch import graphs
from memarch.arch.build import build_model
from memarch.arch.model import MemarchModel
from memarch.arch.run import Cut, cut_blocks

ARMT: dict[str, Any] = {"a": {"type": "armt", "d_mem": 4, "num_tokens": 2}}
MEMORIES: dict[str, dict[str, Any]] = {
    "armt": ARMT,
    "deltanet": {"d": {"type": "deltanet", "heads": 2}},
    "mixed": ARMT | {"d": {"type": "gated_deltanet", "heads": 2, "layers": [1]}},
    "rmt": {"t": {"type": "rmt", "num_tokens": 2}},
}


def build(memory: dict[str, Any], schedule: str = "diagonal") -> MemarchModel:
    backbone = {
        "type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    spec = {"backbone": backbone, "memory": memory, "segment_length": 4, "schedule": schedule}
    model = build_model(spec, vocab_size=23, seed=3).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.1 * noise)
    return model


def tokens(length: int, batch: int = 2) -> Tensor:
    return torch.randint(0, 23, (batch, length), generator=torch.Generator().manual_seed(1))


def blocks(ids: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    yield from ids.split(sizes, dim=1)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("schedule", ["sequential", "auto"])
def test_blocks_of_any_size_give_the_whole_inputs_state(memory: str, schedule: str) -> None:
    model = build(MEMORIES[memory], schedule)
    ids = tokens(38)
    whole = model.write(ids)
    streamed = model.write(blocks(ids, [1, 2, 3, 7, 0, 4, 20, 1]))
    assert set(streamed) == set(whole)
    for key, value in whole.items():
        torch.testing.assert_close(streamed[key], value, rtol=0, atol=1e-10)
        assert not streamed[key].requires_grad


def test_blocks_go_on_from_a_memory() -> None:
    model = build(ARMT)
    ids = tokens(32)
    first = model.write(ids[:, :12])
    streamed = model.write(blocks(ids[:, 12:], [10, 10]), memory=first)
    for key, value in model.write(ids).items():
        torch.testing.assert_close(streamed[key], value, rtol=0, atol=1e-10)


def test_segments_do_not_mind_how_blocks_come() -> None:
    ids = tokens(22, batch=1)
    for sizes in ([22], [4, 4, 4, 4, 4, 2], [1] * 22, [3, 9, 0, 10]):
        pieces = [cut.ids for cut in cut_blocks(blocks(ids, sizes), 4)]
        assert [piece.shape[1] for piece in pieces] == [4, 4, 4, 4, 4, 2]
        assert torch.equal(torch.cat(pieces, dim=1), ids)
    assert [cut.ids.shape[1] for cut in cut_blocks(blocks(ids[:, :8], [8]), 4)] == [4, 4]
    assert all(isinstance(cut, Cut) for cut in cut_blocks([ids], 4))


def test_wrong_streams_say_so() -> None:
    model = build(ARMT)
    with pytest.raises(ValueError, match="needs at least one block"):
        model.write(iter([]))
    with pytest.raises(ValueError, match="an input in blocks has no pads"):
        model.write(blocks(tokens(8), [8]), attention_mask=torch.ones(2, 8))
    good = tokens(8)
    for bad, message in (
        (good[0], r"block 1 must be a tensor of token ids \[B, any\], got torch.int64 \[8\]"),
        (good.double(), "block 1 must be a tensor of token ids"),
        ([1, 2], "got <class 'list'>"),
        (good[:1], "block 1 has 1 rows, those before it have 2"),
    ):
        with pytest.raises(ValueError, match=message):
            model.write(iter([good, bad]))


@pytest.mark.parametrize("schedule", ["sequential", "diagonal"])
def test_no_more_tensors_are_alive_however_long_the_input(schedule: str) -> None:
    model = build(ARMT, schedule)
    alive: list[int] = []

    def measured(length: int) -> Iterator[Tensor]:
        for _ in range(length):
            yield torch.zeros(1, 8, dtype=torch.long)
        gc.collect()
        tensors = [found for found in gc.get_objects() if isinstance(found, Tensor)]
        alive.append(sum(found.untyped_storage().nbytes() for found in tensors))

    for length in (8, 64):
        model.write(measured(length))
    assert alive[1] <= 1.01 * alive[0]


@pytest.mark.parametrize("schedule", ["sequential", "diagonal"])
@pytest.mark.parametrize("memory", ["armt", "deltanet", "mixed"])
def test_steps_from_still_buffers_give_the_same(
    memory: str, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a CUDA graph replays: the same buffers, again and again."""
    model = build(MEMORIES[memory], schedule)
    ids = tokens(61)
    with torch.no_grad():
        plain = model(ids, return_memory=True)
        captured: list[object] = []
        made = graphs.CapturedStep.__init__

        def count(self: Any, *arguments: Any) -> None:
            captured.append(self)
            made(self, *arguments)

        monkeypatch.setattr(graphs.CapturedStep, "__init__", count)
        monkeypatch.setattr(MemarchModel, "device", torch.device("cuda"), raising=False)
        how = model._how()
        monkeypatch.undo()
        assert how.graphs
        monkeypatch.setattr(graphs.CapturedStep, "__init__", count)
        monkeypatch.setattr(MemarchModel, "_how", lambda self, truncate=None: how)
        still = model(ids, return_memory=True)
    assert len(captured) == 1  # one steady phase, which pads and the last segment end
    torch.testing.assert_close(still.logits, plain.logits, rtol=0, atol=1e-10)
    for key, value in plain.memory.items():
        torch.testing.assert_close(still.memory[key], value, rtol=0, atol=1e-10)


def test_only_live_cells_run() -> None:
    """Ramp up and ramp down: as many rows as cells, S * L cells in all."""
    model = build(ARMT)
    sizes: list[int] = []
    layer = model.view.layers[0]
    seen = layer.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[0]))
    with torch.no_grad():
        model.write(tokens(5 * 4, batch=1))
    seen.remove()
    assert sizes == [1, 2, 3, 3, 3, 2, 1]
