"""Full attention and sliding window: masks by hand, segments against the whole input, pads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memarch.components.kv_cache import KVCache, causal_mask
from memarch.components.memory import BuildContext, Segment, State, memories

CONTEXT = BuildContext(
    hidden_size=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=3,
    num_layers=1,
    vocab_size=16,
    segment_length=8,
    norm_eps=1e-6,
    initializer_range=0.02,
)
WINDOWS = [None, 1, 2, 5, 40]
QKV = tuple[Tensor, Tensor, Tensor]


def build(window: int | None) -> KVCache:
    return KVCache(KVCache.Settings(window=window), CONTEXT)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    scores = (q @ k.mT).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def inputs(rows: int, time: int) -> QKV:
    return tuple(  # type: ignore[return-value]
        torch.randn(rows, heads, time, 3, dtype=torch.float64) for heads in (4, 2, 2)
    )


def run(cache: KVCache, qkv: QKV, valid: Tensor, cuts: tuple[int, ...] = ()) -> Any:
    """`(outputs [N, T, H, d], state)`, cut before the given positions."""
    rows, time = valid.shape
    state, outputs = cache.init_state(rows, qkv[1]), []
    for start, stop in zip((0, *cuts), (*cuts, time), strict=True):
        piece = tuple(x[:, :, start:stop] for x in qkv)
        y, state = cache.step(state, piece, attention, segment(valid[:, start:stop]))  # type: ignore[arg-type]
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def segment(valid: Tensor) -> Segment:
    rows, time = valid.shape
    first, positions = torch.ones(rows, dtype=torch.bool), torch.arange(time).unsqueeze(0)
    return Segment(valid=valid, first=first, positions=positions, full=bool(valid.all()))


def ones(rows: int, time: int) -> Tensor:
    return torch.ones(rows, time, dtype=torch.bool)


def ragged() -> Tensor:
    """Pads nowhere, at the end, at the start, anywhere, everywhere."""
    valid = ones(5, 17)
    valid[1, 11:] = False
    valid[2, :7] = False
    valid[3] = torch.rand(17) < 0.5
    valid[4] = False
    return valid


def test_mask_by_hand() -> None:
    """Two stored tokens, the first invalid, then three new ones, the second a pad."""
    past, valid = torch.tensor([[False, True]]), torch.tensor([[True, False, True]])
    assert causal_mask(past, valid).int().tolist() == [
        [[[0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 0, 1]]]
    ]
    window = causal_mask(past, valid, window=2)[0, 0].int().tolist()
    assert window[0] == [0, 1, 1, 0, 0]
    assert window[2] == [0, 0, 1, 0, 1]


@pytest.mark.parametrize("window", WINDOWS)
def test_whole_input_is_causal_attention(window: int | None) -> None:
    qkv, valid = inputs(2, 12), ones(2, 12)
    position = torch.arange(12)
    distance = position[:, None] - position
    mask = (distance >= 0) & (distance < (window or 12))
    y, _ = run(build(window), qkv, valid)
    torch.testing.assert_close(y, attention(*qkv, mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cuts", [(), (8, 16), (1, 2, 2, 3, 13), tuple(range(1, 17))])
@pytest.mark.parametrize("window", WINDOWS)
def test_streaming_skips_pads_and_equals_whole(window: int | None, cuts: tuple[int, ...]) -> None:
    """However the input is cut and padded, each row gives what its valid tokens alone give."""
    cache, qkv, valid = build(window), inputs(5, 17), ragged()
    outputs, state = run(cache, qkv, valid, cuts)
    assert outputs.isfinite().all()
    for row in range(5):
        alone = tuple(x[row : row + 1, :, valid[row]] for x in qkv)
        count = int(valid[row].sum())
        expected, last = run(cache, alone, ones(1, count))  # type: ignore[arg-type]
        torch.testing.assert_close(outputs[row, valid[row]], expected[0], rtol=0, atol=1e-12)
        assert state["valid"][row].sum() == last["valid"].sum()
        for key in ("k", "v"):
            kept = state[key][row][:, state["valid"][row]]
            torch.testing.assert_close(kept, last[key][0][:, last["valid"][0]], rtol=0, atol=0)


@pytest.mark.parametrize("window", WINDOWS)
def test_full_segments_after_ragged_ones(window: int | None) -> None:
    """Gaps that earlier segments left in a cache are closed, also when nothing new is invalid."""
    cache, qkv, valid = build(window), inputs(5, 24), torch.cat([ragged(), ones(5, 7)], dim=1)
    whole, state = run(cache, qkv, valid)
    pieces, last = run(cache, qkv, valid, (17, 20))
    torch.testing.assert_close(pieces[valid], whole[valid], rtol=0, atol=1e-12)
    for key, value in state.items():
        assert torch.equal(last[key], value)


@pytest.mark.parametrize("window", WINDOWS)
def test_segments_without_valid_tokens_keep_the_state(window: int | None) -> None:
    """Bit for bit, and the state that was given is not modified."""
    cache = build(window)
    _, before = run(cache, inputs(5, 17), ragged())
    kept = {key: value.clone() for key, value in before.items()}
    _, after = cache.step(before, inputs(5, 6), attention, segment(~ones(5, 6)))
    _, other = cache.step(before, inputs(5, 6), attention, segment(ones(5, 6)))
    for key, value in kept.items():
        assert torch.equal(before[key], value)
        assert torch.equal(after[key], value)
    assert window == 1 or not torch.equal(other["k"], kept["k"])


@pytest.mark.parametrize("window", [2, 5])
def test_rows_without_valid_tokens_keep_their_state(window: int) -> None:
    cache = build(window)
    _, before = run(cache, inputs(2, 9), ones(2, 9))
    valid = torch.tensor([[True], [False]]).expand(2, 6)
    _, after = cache.step(before, inputs(2, 6), attention, segment(valid))
    for key, value in before.items():
        assert torch.equal(after[key][1], value[1])


def test_state_sizes() -> None:
    """Full attention stores every valid token and no pad; a window has its size from the start."""

    def shapes(state: State) -> list[tuple[int, ...]]:
        return [tuple(value.shape) for value in state.values()]

    like, valid = torch.zeros(1), ones(2, 9)
    valid[:, 6:] = False
    assert shapes(build(None).init_state(2, like)) == [(2, 2, 0, 3), (2, 2, 0, 3), (2, 0)]
    assert shapes(run(build(None), inputs(2, 9), valid)[1]) == [(2, 2, 6, 3), (2, 2, 6, 3), (2, 6)]
    for state in (build(4).init_state(2, like), run(build(4), inputs(2, 9), valid)[1]):
        assert shapes(state) == [(2, 2, 3, 3), (2, 2, 3, 3), (2, 3)]


@pytest.mark.parametrize("window", [None, 5])
def test_gradient_through_the_cache_equals_the_whole(window: int | None) -> None:
    qkv, valid = tuple(x.requires_grad_() for x in inputs(1, 10)), ones(1, 10)
    weight = torch.randn(1, 10, 4, 3, dtype=torch.float64)
    gradients = []
    for cuts in ((), (3, 6, 9)):
        y, _ = run(build(window), qkv, valid, cuts)  # type: ignore[arg-type]
        gradients.append(torch.autograd.grad((y * weight).sum(), qkv))
    for whole, pieces in zip(*gradients, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)


def test_registration() -> None:
    assert memories["full_attention"].cls is memories["sliding_window"].cls is KVCache
    assert not build(None).groupable
    assert build(4).groupable
    assert KVCache.whole_input
    assert KVCache.positions == "input"
