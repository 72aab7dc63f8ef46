"""The associative read: equations, the Triton form against the reference, gradients, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from ahead_of_time import Resources, Specimen
from associative import (
    EPS,
    LAYOUTS,
    MAPS,
    Inputs,
    assert_near,
    assert_no_worse,
    double,
    on_gpu,
    phi,
    sizes,
)
from torch import Tensor

from memarch.kernels.associative_read import associative_read
from memarch.kernels.feature_maps import FeatureMap, num_features

NAMES = ("x", "query", "matrix", "normalizer")


def make(
    rows: int, time: int, width: int, d: int, name: FeatureMap, dtype: torch.dtype = torch.float32
) -> Inputs:
    """A state as writes leave it, with a normaliser above 0; row 1 has stored nothing."""
    features = num_features(name, d)
    inputs = {
        "x": torch.randn(rows, time, width),
        "query": torch.randn(rows, time, d),
        "matrix": torch.randn(rows, features, width),
        "normalizer": torch.rand(rows, features) + 0.5,
    }
    empty = torch.arange(rows) == 1
    return {key: tensor.to(dtype) for key, tensor in inputs.items()} | {"empty": empty}


def gradients(
    run: Callable[..., Tensor], inputs: Inputs, name: FeatureMap, wanted: tuple[str, ...] = NAMES
) -> Inputs:
    """The output and the gradients of the wanted inputs, for the same incoming gradient."""
    given = {key: inputs[key].detach().requires_grad_(key in wanted) for key in NAMES}
    out = run(**given, empty=inputs["empty"], feature_map=name)
    generator = torch.Generator(out.device).manual_seed(0)
    dy = torch.randn(out.shape, generator=generator, device=out.device).to(out.dtype)
    found = torch.autograd.grad(out, [given[key] for key in wanted], dy)
    return {"out": out.detach()} | {f"d{key}": g for key, g in zip(wanted, found, strict=True)}


def second(run: Callable[..., Tensor], inputs: Inputs, name: FeatureMap) -> Inputs:
    """The gradients of the size of the query's and the matrix's gradient."""
    given = {key: inputs[key].detach().requires_grad_() for key in NAMES}
    loss = run(**given, empty=inputs["empty"], feature_map=name).square().sum()
    slopes = torch.autograd.grad(loss, [given["query"], given["matrix"]], create_graph=True)
    size = sum(slope.square().sum() for slope in slopes)
    return dict(zip(NAMES, torch.autograd.grad(size, list(given.values())), strict=True))


def reference(**given: Any) -> Tensor:
    return associative_read(**given, impl="reference")


def triton(**given: Any) -> Tensor:
    return associative_read(**given, impl="triton")


def definition(
    x: Tensor,
    query: Tensor,
    matrix: Tensor,
    normalizer: Tensor,
    empty: Tensor,
    feature_map: FeatureMap,
) -> Tensor:
    """The equations, token by token."""
    out = []
    for n in range(x.shape[0]):
        for t in range(x.shape[1]):
            features = phi(query[n, t], feature_map)
            y = matrix[n].T @ features / (normalizer[n] @ features + EPS)
            out.append(x[n, t] if empty[n] else x[n, t] + y)
    return torch.stack(out).view(x.shape)


@pytest.mark.parametrize("name", MAPS)
def test_the_reference_is_the_equation(name: FeatureMap) -> None:
    inputs = double(make(3, 4, 5, 3, name))
    assert_near(gradients(reference, inputs, name), gradients(definition, inputs, name), 1e-13)
    assert_near(second(reference, inputs, name), second(definition, inputs, name), 1e-12)
    with torch.no_grad():
        found = reference(**inputs, feature_map=name)
    assert torch.equal(found[1], inputs["x"][1])
    torch.testing.assert_close(found, definition(**inputs, feature_map=name))


@pytest.mark.parametrize("name", MAPS)
def test_the_reference_is_differentiable_twice(name: FeatureMap) -> None:
    inputs = double(make(2, 2, 2, 2, name))
    leaves = tuple(inputs[key].requires_grad_() for key in NAMES)

    def read(*tensors: Tensor) -> Tensor:
        return associative_read(*tensors, inputs["empty"], feature_map=name)

    assert torch.autograd.gradcheck(read, leaves)
    assert torch.autograd.gradgradcheck(read, leaves)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        # time, width, d
        ("dpfp3", (1, 5, 3)),
        ("dpfp3", (33, 65, 16)),
        ("dpfp3", (7, 33, 16)),
        ("dpfp3", (65, 33, 5)),
        ("dpfp2", (7, 33, 3)),
        ("dpfp2", (33, 5, 16)),
        ("dpfp1", (33, 5, 16)),
        ("dpfp1", (7, 65, 1)),
        ("elu1", (7, 65, 3)),
        ("elu1", (33, 33, 16)),
        ("elu1", (33, 5, 33)),
        ("relu", (33, 33, 3)),
        ("relu", (1, 65, 16)),
        ("relu", (7, 33, 65)),
    ],
    ids=str,
)
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_triton_equals_the_reference(name: FeatureMap, shape: tuple[int, int, int]) -> None:
    """With gradients and without them; a row that has stored nothing keeps its x."""
    inputs = make(3, *shape, name)
    expected = gradients(reference, double(inputs), name)
    found = gradients(triton, inputs, name)
    assert_near(found, expected, 3e-6)
    out = triton(**inputs, feature_map=name)
    assert torch.equal(out, found["out"])
    assert torch.equal(out[1], inputs["x"][1])


@pytest.mark.parametrize("name", ["dpfp3", "elu1", "relu"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_triton_is_no_worse_than_the_reference_in_low_precision(
    kind: torch.dtype, name: FeatureMap
) -> None:
    inputs = make(3, 33, 65, 16, name, kind)
    truth = gradients(reference, double(inputs), name)
    found = gradients(triton, inputs, name)
    assert found["out"].dtype == kind
    assert_no_worse(found, gradients(reference, inputs, name), truth)


@pytest.mark.parametrize(
    "wide", [("matrix", "normalizer"), ("x",), ("normalizer",), ("x", "query")], ids=str
)
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_types_may_differ(wide: tuple[str, ...]) -> None:
    """Some in float32, the others in bfloat16."""
    inputs = make(3, 9, 33, 16, "dpfp3", torch.bfloat16)
    inputs |= {key: inputs[key].float() for key in wide}
    found = gradients(triton, inputs, "dpfp3")
    assert found["out"].dtype == inputs["x"].dtype
    for key in NAMES:
        assert found[f"d{key}"].dtype == inputs[key].dtype
    truth = gradients(reference, double(inputs), "dpfp3")
    assert_no_worse(found, gradients(reference, inputs, "dpfp3"), truth)


@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("moved", ["x", "matrix", "normalizer", "all"])
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_inputs_may_lie_anywhere(moved: str, lay: Callable[[Tensor], Tensor]) -> None:
    inputs = make(3, 9, 33, 8, "dpfp2")
    inputs |= {key: lay(inputs[key]) for key in NAMES if moved in (key, "all")}
    inputs["empty"] = LAYOUTS["gaps"](inputs["empty"])
    expected = gradients(reference, double(inputs), "dpfp2")
    assert_near(gradients(triton, inputs, "dpfp2"), expected, 3e-6)


@pytest.mark.parametrize("wanted", NAMES)
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_gradients_of_one_input(wanted: str) -> None:
    inputs = make(2, 3, 5, 3, "dpfp1")
    for run in (reference, triton):
        expected = gradients(run, inputs, "dpfp1")
        found = gradients(run, inputs, "dpfp1", (wanted,))
        assert_near(found, {key: expected[key] for key in found}, 1e-6)


@pytest.mark.parametrize("name", ["dpfp2", "elu1", "relu"])
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_second_derivatives_agree(name: FeatureMap) -> None:
    inputs = make(3, 7, 5, 3, name)
    assert_near(second(triton, inputs, name), second(reference, double(inputs), name), 2e-5)


@pytest.mark.parametrize("shape", [(0, 2, 4), (2, 0, 4), (2, 3, 0)], ids=str)
@pytest.mark.usefixtures("_triton", "nan_poisoned")
def test_nothing_to_do(shape: tuple[int, int, int]) -> None:
    """No rows, no tokens, no width."""
    inputs = make(*shape, 3, "dpfp1")
    expected = gradients(reference, inputs, "dpfp1")
    assert_near(gradients(triton, inputs, "dpfp1"), expected, 0)
    assert all(not tensor.isnan().any() for tensor in expected.values())


@pytest.mark.usefixtures("_triton")
def test_autocast_changes_nothing() -> None:
    inputs = make(3, 7, 5, 3, "dpfp3")
    device = inputs["x"].device.type
    for run in (reference, triton):
        expected = gradients(run, inputs, "dpfp3")
        with torch.autocast(device, torch.bfloat16):
            assert_near(gradients(run, inputs, "dpfp3"), expected, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"query": torch.ones(2, 4, 2)},
            r"query must have shape \[N=2, T=3, d=2\], got \[2, 4, 2\]",
        ),
        (
            {"matrix": torch.ones(2, 12, 4)},
            r"matrix must have shape \[N=2, F=12, D=5\], got \[2, 12",
        ),
        ({"normalizer": torch.ones(2, 11)}, r"normalizer must .* \[N=2, F=12\], got \[2, 11\]"),
        ({"empty": torch.zeros(3, dtype=torch.bool)}, r"empty must have shape \[N=2\], got \[3\]"),
        ({"feature_map": "dpfp1"}, "'dpfp1' gives 4 features of d=2, got a matrix of F=12"),
        ({"impl": "cuda"}, "impl must be 'auto', 'reference' or 'triton', got 'cuda'"),
        (
            {"x": torch.ones(2, 3, 5).double(), "impl": "triton"},
            "got torch.float64; use impl='auto'",
        ),
        (
            {"query": torch.ones(2, 3, 12), "feature_map": "softmax", "impl": "triton"},
            "'softmax' has no Triton form; use impl='auto' or 'reference'",
        ),
    ],
)
@pytest.mark.usefixtures("_triton")
def test_what_does_not_fit_is_an_error(wrong: dict[str, Any], message: str) -> None:
    given = {**make(2, 3, 5, 2, "dpfp3"), "feature_map": "dpfp3"}
    with pytest.raises(ValueError, match=f"associative_read: .*{message}"):
        associative_read(**(given | wrong))


KINDS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def specimen(
    kind: str, state: str, shape: tuple[int, int, int], d: int, name: FeatureMap, arch: int
) -> Specimen:
    """A launch over x `[N, T, D]` in `kind`, with A and z in `state`."""
    from memarch.kernels.associative_read import triton_kernels

    _, time, width = shape
    features = num_features(name, d)
    with on_gpu(triton_kernels, arch):
        x = torch.empty(shape, device="meta")
        blocks = triton_kernels._choose_blocks(x, features, KINDS[kind])
    tensors = dict.fromkeys(("x", "query", "out"), f"*{kind}")
    tensors |= dict.fromkeys(("matrix", "normalizer"), f"*{state}") | {"empty": "*i1"}
    constants = {
        "EPS": EPS,
        "MAP": triton_kernels.kind(name),
        "d": d,
        "num_features": features,
        "MASKED": time < blocks.time or features % blocks.features > 0,
        "BLOCK_TIME": blocks.time,
        "BLOCK_FEATURES": blocks.features,
        "BLOCK_WIDTH": blocks.width,
    }
    numbers = sizes(
        time=time,
        width=width,
        span=blocks.span,
        x_row=time * width,
        x_time=width,
        matrix_row=features * width,
        matrix_feature=width,
        normalizer_row=features,
    )
    return Specimen(
        f"{triton_kernels.__name__}:_read",
        tensors | numbers,
        constants,
        blocks.num_warps,
        blocks.num_stages,
    )


def specimens() -> Iterator[Any]:
    for label, *launch in (
        ("D 2048", "bf16", "bf16", (8, 1152, 2048), 64, "dpfp3"),
        ("D 128", "bf16", "bf16", (8, 40, 128), 16, "dpfp3"),
        ("D 256, float32", "fp32", "fp32", (8, 136, 256), 16, "dpfp3"),
        ("state in float32", "bf16", "fp32", (8, 1152, 2048), 64, "elu1"),
    ):
        for arch in (80, 90):
            yield pytest.param(specimen(*launch, arch), arch, id=f"{label}, sm{arch}")


SPECIMENS = list(specimens()) if find_spec("triton") is not None else []


@pytest.mark.parametrize(("specimen", "arch"), SPECIMENS)
def test_compiles_ahead_of_time(
    specimen: Specimen, arch: int, compile_ahead: Callable[[Specimen, int], Resources]
) -> None:
    resources = compile_ahead(specimen, arch)
    assert resources.spills == 0
    assert resources.shared <= {80: 163, 90: 227}[arch] * 1024
