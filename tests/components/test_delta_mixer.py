"""DeltaNet and Gated DeltaNet: the papers' equations, segments, pads, groups of cells."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from memarch.components.delta_mixer import DELTANET, GATED_DELTANET, DeltaMixer
from memarch.components.errors import SpecError
from memarch.components.memory import BuildContext, Segment, State, memories

KINDS: dict[str, dict[str, Any]] = {
    "deltanet": DELTANET,
    "gated_deltanet": GATED_DELTANET,
    "hebbian": {"write": {"type": "hebbian"}},
    "no_conv": {"conv": 0, "qk_norm": "none", "output_norm": "none"},
    "conv_1": {"conv": 1, "write": {"type": "delta", "negative_eigenvalues": True}},
    "wide_values": {"head_dim_k": 3, "head_dim_v": 5, "conv": 2, "output_gate": True},
}
HIDDEN = 8


def build(
    settings: dict[str, Any], dtype: torch.dtype = torch.float64, **context: Any
) -> DeltaMixer:
    given: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 4,
        "num_layers": 2,
        "vocab_size": 16,
        "segment_length": 8,
        "norm_eps": 1e-6,
        "initializer_range": 0.4,
    }
    parsed = DeltaMixer.Settings(**({"chunk_size": 4} | settings))
    return DeltaMixer(parsed, BuildContext(**(given | context))).to(dtype)


def segment(valid: Tensor) -> Segment:
    rows, time = valid.shape
    return Segment(
        valid=valid,
        first=torch.ones(rows, dtype=torch.bool),
        positions=torch.arange(time).unsqueeze(0),
        full=bool(valid.all()),
    )


def run(mixer: DeltaMixer, x: Tensor, valid: Tensor | None = None, cuts: Any = ()) -> Any:
    """`(outputs, state)` of x `[N, T, D]`, cut before the given positions."""
    valid = torch.ones(x.shape[:2], dtype=torch.bool) if valid is None else valid
    state, outputs = mixer.init_state(x.shape[0], x), []
    for start, stop in zip((0, *cuts), (*cuts, x.shape[1]), strict=True):
        y, state = mixer.step(state, x[:, start:stop], None, segment(valid[:, start:stop]))
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def assert_same(actual: State, expected: State, tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=tolerance)


@pytest.fixture(params=KINDS)
def mixer(request: pytest.FixtureRequest) -> DeltaMixer:
    return build(KINDS[request.param])


@pytest.mark.parametrize("kind", ["deltanet", "gated_deltanet"])
def test_equations_of_the_paper(kind: str) -> None:
    """A loop over heads and tokens, written from the papers with the transposed state S [V, K]."""
    mixer = build(KINDS[kind])
    nn.init.normal_(mixer.norm.weight)  # type: ignore[union-attr]
    x = torch.randn(1, 9, HIDDEN, dtype=torch.float64)
    padded = F.pad(mixer.qkv(x).transpose(1, 2), (3, 0))
    weight = mixer.conv.weight.unsqueeze(1)  # type: ignore[union-attr]
    qkv = F.silu(F.conv1d(padded, weight, groups=mixer.channels))[0].T  # [T, channels]
    q, k, v = (part.view(9, 2, 4) for part in qkv.chunk(3, dim=-1))
    beta = torch.sigmoid(mixer.beta(x))[0]  # type: ignore[misc]
    y = []
    states = [torch.zeros(4, 4, dtype=torch.float64) for _ in range(2)]
    for t in range(9):
        heads = []
        for h in range(2):
            unit_k = k[t, h] / (k[t, h] @ k[t, h] + 1e-6).sqrt()
            unit_q = q[t, h] / (q[t, h] @ q[t, h] + 1e-6).sqrt() / 2
            alpha = torch.tensor(1.0)
            if mixer.alpha is not None and mixer.decay is not None:
                rate = mixer.alpha(x)[0, t, h] + mixer.decay_bias.weight[h]  # type: ignore[union-attr]
                alpha = torch.exp(-torch.exp(mixer.decay.weight[h]) * F.softplus(rate))
            erase = torch.eye(4) - beta[t, h] * torch.outer(unit_k, unit_k)
            states[h] = alpha * states[h] @ erase + beta[t, h] * torch.outer(v[t, h], unit_k)
            heads.append(F.rms_norm(states[h] @ unit_q, (4,), mixer.norm.weight, 1e-6))  # type: ignore[union-attr]
        o = torch.cat(heads)
        if mixer.gate is not None:
            o = o * F.silu(mixer.gate(x[0, t]))
        y.append(mixer.out(o))
    outputs, state = run(mixer, x)
    torch.testing.assert_close(outputs[0], torch.stack(y), rtol=0, atol=1e-12)
    torch.testing.assert_close(state["S"][0].mT, torch.stack(states), rtol=0, atol=1e-12)


def test_hebbian_write_is_the_sum_of_outer_products() -> None:
    mixer = build({"write": {"type": "hebbian"}, "conv": 0, "heads": 1})
    x = torch.randn(1, 11, HIDDEN, dtype=torch.float64)
    _, k, v = F.silu(mixer.qkv(x))[0].chunk(3, dim=-1)
    k = k / (k.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(run(mixer, x)[1]["S"][0, 0], k.T @ v, rtol=0, atol=1e-12)


def test_streaming_equals_whole(mixer: DeltaMixer) -> None:
    """Segments of any length, one shorter than the convolution's tail, one empty."""
    x = torch.randn(2, 21, HIDDEN, dtype=torch.float64)
    outputs, state = run(mixer, x)
    for cuts in ((8, 16), (1, 2, 2, 3, 13), range(1, 21)):
        pieces, last = run(mixer, x, cuts=tuple(cuts))
        torch.testing.assert_close(pieces, outputs, rtol=0, atol=1e-12)
        assert_same(last, state, 1e-12)


def test_invalid_tokens_are_skipped(mixer: DeltaMixer) -> None:
    """Pads at the end, at the start, anywhere: each row is what its valid tokens alone give."""
    valid = torch.ones(5, 17, dtype=torch.bool)
    valid[1, 11:] = False
    valid[2, :7] = False
    valid[3] = torch.rand(17) < 0.5
    valid[4] = False
    x = torch.randn(5, 17, HIDDEN, dtype=torch.float64)
    for cuts in ((), (4, 8, 12), tuple(range(1, 17))):
        outputs, state = run(mixer, x, valid, cuts)
        for row in range(5):
            alone, last = run(mixer, x[row : row + 1, valid[row]])
            torch.testing.assert_close(outputs[row, valid[row]], alone[0], rtol=0, atol=1e-12)
            assert_same({key: value[row : row + 1] for key, value in state.items()}, last, 1e-12)


def test_rows_without_valid_tokens_keep_their_state(mixer: DeltaMixer) -> None:
    """Bit for bit, also when other rows of the batch go on; and the given state is not modified."""
    x = torch.randn(2, 6, HIDDEN, dtype=torch.float64)
    _, before = run(mixer, x)
    kept = {key: value.clone() for key, value in before.items()}
    valid = torch.tensor([[True] * 6, [False] * 6])
    _, after = mixer.step(before, x, None, segment(valid))
    for key, value in kept.items():
        assert torch.equal(before[key], value)
        assert torch.equal(after[key][1], value[1])
    assert not torch.equal(after["S"][0], kept["S"][0])


def test_gradient_through_time_equals_the_unrolled_loop(mixer: DeltaMixer) -> None:
    """Every parameter gets a gradient; chunks over the whole input and a token a step agree."""
    x = torch.randn(2, 14, HIDDEN, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 14, HIDDEN, dtype=torch.float64)
    names, parameters = zip(*mixer.named_parameters(), strict=True)
    gradients = []
    for cuts in ((), tuple(range(1, 14))):
        loss = (run(mixer, x, cuts=cuts)[0] * weight).sum()
        gradients.append(torch.autograd.grad(loss, [x, *parameters]))
    for name, whole, unrolled in zip(("x", *names), *gradients, strict=True):
        assert whole.abs().max() > 0, name
        torch.testing.assert_close(whole, unrolled, rtol=1e-9, atol=1e-10)


def test_the_state_learns_from_the_next_segment(mixer: DeltaMixer) -> None:
    """A loss on the second segment reaches the first one's tokens through the state."""
    x = torch.randn(1, 8, HIDDEN, dtype=torch.float64, requires_grad=True)
    run(mixer, x, cuts=(4,))[0][:, 4:].sum().backward()
    assert x.grad is not None
    assert x.grad[:, :4].abs().max() > 0


def test_a_group_of_cells_equals_the_cells(mixer: DeltaMixer) -> None:
    """Leaves with stacked weights, rows of three cells folded into one batch."""
    cells = [copy.deepcopy(mixer) for _ in range(3)]
    for cell in cells:
        cell.reset_parameters()
    group = copy.deepcopy(mixer)
    for name, leaf in list(group.named_modules()):
        if isinstance(getattr(leaf, "weight", None), nn.Parameter):
            weight = torch.stack([cell.get_submodule(name).weight for cell in cells])  # type: ignore[misc]
            if isinstance(leaf, nn.Linear):
                group.set_submodule(name, StackedLinear(weight))
            else:
                del leaf.weight
                leaf.weight = weight
    x = torch.randn(6, 9, HIDDEN, dtype=torch.float64)
    outputs, state = run(group, x)
    for g, cell in enumerate(cells):
        rows = slice(2 * g, 2 * g + 2)
        alone, last = run(cell, x[rows])
        torch.testing.assert_close(outputs[rows], alone, rtol=0, atol=1e-12)
        assert_same({key: value[rows] for key, value in state.items()}, last, 1e-12)


class StackedLinear(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        groups = self.weight.shape[0]
        return torch.einsum("gbti,goi->gbto", x.unflatten(0, (groups, -1)), self.weight).flatten(
            0, 1
        )


def test_beside_attention_starts_as_attention_alone() -> None:
    mixer = build({"beside": True})
    assert mixer.keeps_attention
    x, valid = torch.randn(2, 5, HIDDEN, dtype=torch.float64), torch.ones(2, 5, dtype=torch.bool)
    state = mixer.init_state(2, x)
    y, _ = mixer.step(state, x, torch.sin, segment(valid))
    assert torch.equal(y, x.sin())
    nn.init.ones_(mixer.out.weight)
    y, _ = mixer.step(state, x, torch.sin, segment(valid))
    alone, _ = build({}).step(state, x, None, segment(valid))
    assert alone.shape == y.shape
    assert not torch.equal(y, x.sin())


def test_state_is_float32_in_a_bfloat16_model() -> None:
    mixer = build(GATED_DELTANET, torch.bfloat16)
    x = torch.randn(1, 5, HIDDEN).bfloat16()
    y, state = run(mixer, x)
    assert y.dtype == torch.bfloat16
    assert (state["S"].dtype, state["conv"].dtype) == (torch.float32, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = run(build(GATED_DELTANET, torch.float32), x.float())
    assert (state["S"].dtype, state["conv"].dtype) == (torch.float32, torch.float32)


def test_settings() -> None:
    assert memories["deltanet"].cls is memories["gated_deltanet"].cls is DeltaMixer
    state = build({"heads": 4, "conv": 4}).init_state(3, torch.zeros(1))
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "S": (3, 4, 2, 2),
        "conv": (3, 3, 24),
    }
    assert not build({}).keeps_attention
    with pytest.raises(SpecError, match="heads=3, hidden_size=8"):
        build({"heads": 3})
    assert build({"heads": 3, "head_dim_k": 2, "head_dim_v": 4}).channels == 24
    with pytest.raises(ValidationError, match="window"):
        build({"window": 4})
    with pytest.raises(ValueError, match="take float32, bfloat16 and float16"):
        run(build({}, impl="triton"), torch.zeros(1, 2, HIDDEN, dtype=torch.float64))
