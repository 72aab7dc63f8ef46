"""The delta rules: equations by hand, both forms against each other, gradients, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from memarch.kernels.delta_rule import delta_rule
from memarch.kernels.gated_delta_rule import gated_delta_rule

Inputs = dict[str, Tensor]


def make(
    gated: bool, time: int, *, batch: int = 2, heads: int = 2, key: int = 6, value: int = 5
) -> Inputs:
    """Random float64 inputs that require gradients, with unit keys and a state that is not zero."""
    tokens = (batch, time, heads)
    k = torch.randn(*tokens, key, dtype=torch.float64)
    inputs = {
        "q": torch.randn(*tokens, key, dtype=torch.float64),
        "k": k / k.norm(dim=-1, keepdim=True),
        "v": torch.randn(*tokens, value, dtype=torch.float64),
        "beta": torch.rand(*tokens, dtype=torch.float64) * 2,
        "state": torch.randn(batch, heads, key, value, dtype=torch.float64),
    }
    if gated:
        inputs["g"] = -torch.rand(*tokens, dtype=torch.float64)
    return {name: x.requires_grad_() for name, x in inputs.items()}


def run(inputs: Inputs, **options: object) -> tuple[Tensor, Tensor]:
    operation: Callable[..., tuple[Tensor, Tensor]]
    operation = gated_delta_rule if "g" in inputs else delta_rule
    return operation(**inputs, **options)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    scale = expected.abs().max().clamp_min(1.0)
    assert (actual - expected).abs().max() / scale <= tolerance


@pytest.mark.parametrize("chunk_size", [16, 64])
@pytest.mark.parametrize("time", [1, 63, 64, 65, 100])
@pytest.mark.parametrize("gated", [False, True], ids=["delta", "gated"])
def test_chunked_equals_recurrent(gated: bool, time: int, chunk_size: int) -> None:
    """Outputs, final state and the gradient of every input, the initial state included."""
    inputs = make(gated, time)
    outputs, states, gradients = [], [], []
    weights = (torch.randn(2, time, 2, 5).double(), torch.randn(2, 2, 6, 5).double())
    for form in ("recurrent", "chunked"):
        o, state = run(inputs, form=form, chunk_size=chunk_size)
        loss = (o * weights[0]).sum() + (state * weights[1]).sum()
        outputs.append(o)
        states.append(state)
        gradients.append(torch.autograd.grad(loss, list(inputs.values())))
    assert_near(outputs[1], outputs[0])
    assert_near(states[1], states[0])
    for chunked, recurrent in zip(gradients[1], gradients[0], strict=True):
        assert_near(chunked, recurrent)


@pytest.mark.parametrize("gated", [False, True], ids=["delta", "gated"])
def test_chunked_is_twice_differentiable(gated: bool) -> None:
    inputs = make(gated, 5, batch=1, heads=1, key=2, value=2)
    names = list(inputs)

    def chunked(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return run(dict(zip(names, tensors, strict=True)), chunk_size=2)

    assert torch.autograd.gradcheck(chunked, tuple(inputs.values()))
    assert torch.autograd.gradgradcheck(chunked, tuple(inputs.values()))


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_second_write_to_a_key_replaces_the_first(form: str) -> None:
    """With beta = 1 and a unit key: write v1, then v2, under the same key; the key recalls v2."""
    k = torch.tensor([0.6, 0.8], dtype=torch.float64).expand(1, 2, 1, 2)
    v = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 5.0, 0.5]], dtype=torch.float64).view(1, 2, 1, 3)
    o, state = delta_rule(k, k, v, torch.ones(1, 2, 1, dtype=torch.float64), form=form)  # type: ignore[arg-type]
    torch.testing.assert_close(o, v, rtol=0, atol=1e-14)
    torch.testing.assert_close(k[0, 0] @ state[0, 0], v[0, 1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_orthogonal_keys_recall_exactly(form: str) -> None:
    """Values under orthonormal keys: the state is K^T V, and every key recalls its value."""
    k = torch.linalg.qr(torch.randn(4, 4).double()).Q
    v = torch.randn(4, 3).double()
    ones = torch.ones(1, 4, 1, dtype=torch.float64)
    _, state = delta_rule(k[None, :, None], k[None, :, None], v[None, :, None], ones, form=form)  # type: ignore[arg-type]
    torch.testing.assert_close(state[0, 0], k.T @ v, rtol=0, atol=1e-14)
    torch.testing.assert_close(k @ state[0, 0], v, rtol=0, atol=1e-14)


def test_half_a_write_moves_half_way() -> None:
    """beta = 1/2 on an empty state stores v / 2, a second time 3/4 v: steps on the error."""
    k = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(1, 2, 1, 2)
    v = torch.tensor([8.0], dtype=torch.float64).expand(1, 2, 1, 1)
    o, _ = delta_rule(k, k, v, torch.full((1, 2, 1), 0.5, dtype=torch.float64))
    assert o.flatten().tolist() == [4.0, 6.0]


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_decay_halves_what_was_stored(form: str) -> None:
    """Without writes the state halves at every token, and is read after the decay."""
    q = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 3, 1, 2)
    zeros, state = torch.zeros(1, 3, 1, dtype=torch.float64), torch.zeros(1, 1, 2, 1).double()
    state[0, 0, 0] = 8.0
    g = zeros + torch.tensor(0.5, dtype=torch.float64).log()
    o, final = gated_delta_rule(q, q, q[..., :1], zeros, g, state, form=form)  # type: ignore[arg-type]
    torch.testing.assert_close(o.flatten(), torch.tensor([4.0, 2.0, 1.0]).double())
    torch.testing.assert_close(final[0, 0, 0, 0], torch.tensor(1.0).double())


def test_a_decayed_value_is_still_replaced_exactly() -> None:
    """The decay acts before the write: with beta = 1 a new value is stored whole."""
    inputs = make(True, 3, batch=1, heads=1)
    inputs["k"] = inputs["k"][:, :1].expand(1, 3, 1, 6)
    inputs |= {"q": inputs["k"], "beta": torch.ones(1, 3, 1).double()}
    o, _ = run(inputs)
    torch.testing.assert_close(o, inputs["v"], rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_gated_without_decay_is_the_delta_rule(form: str) -> None:
    inputs = make(False, 70)
    expected = run(inputs, form=form, chunk_size=32)
    actual = run(inputs | {"g": torch.zeros(2, 70, 2).double()}, form=form, chunk_size=32)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)


def test_strong_decay_stays_finite() -> None:
    """Decays whose product over a chunk underflows: no overflow, no NaN in values or gradients."""
    inputs = make(True, 100)
    inputs["g"] = (inputs["g"].detach() * 500).requires_grad_()
    o, state = run(inputs)
    expected = run(inputs, form="recurrent")
    assert_near(o, expected[0])
    for gradient in torch.autograd.grad(o.sum() + state.sum(), list(inputs.values())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("gated", [False, True], ids=["delta", "gated"])
def test_streaming_equals_whole(gated: bool) -> None:
    inputs = make(gated, 50)
    whole = run(inputs, chunk_size=16)
    state, outputs = inputs["state"], []
    for start, stop in ((0, 1), (1, 1), (1, 20), (20, 37), (37, 50)):
        piece = {name: x[:, start:stop] for name, x in inputs.items() if name != "state"}
        o, state = run(piece | {"state": state}, chunk_size=16)
        outputs.append(o)
    assert_near(torch.cat(outputs, dim=1), whole[0], 1e-12)
    assert_near(state, whole[1], 1e-12)


@pytest.mark.parametrize("gated", [False, True], ids=["delta", "gated"])
def test_low_precision_computes_in_float32(gated: bool) -> None:
    """bfloat16 in, bfloat16 out, a float32 state; autocast does not reach the recurrence."""
    inputs = {name: x.detach().bfloat16() for name, x in make(gated, 40).items()}
    o, state = run(inputs)
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    wide = {name: x.float() for name, x in inputs.items()}
    assert_near(state, run(wide)[1], 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_near(run(wide)[0], run(wide)[0], 0)
        assert_near(run(inputs)[1], state, 0)


def test_inputs_are_checked() -> None:
    inputs = {name: x.detach() for name, x in make(True, 4).items()}
    with pytest.raises(ValueError, match=r"beta must have shape \[B=2, T=4, H=2\], got \[2, 4\]"):
        run(inputs | {"beta": inputs["beta"][:, :, 0]})
    with pytest.raises(ValueError, match=r"state must have shape \[B=2, H=2, K=6, V=5\]"):
        run(inputs | {"state": inputs["state"].mT})
    with pytest.raises(ValueError, match=r"take float32, bfloat16 and float16, got torch\.float64"):
        run(inputs, impl="triton")
    with pytest.raises(ValueError, match="impl must be"):
        run(inputs, impl="cuda")
    with pytest.raises(ValueError, match="form must be"):
        run(inputs, form="parallel")
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        run(inputs, chunk_size=0)
