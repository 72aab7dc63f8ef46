"""`bench kernels`: each operation's Triton kernel against the ways around it, forward and backward.

Candidates: `reference`, plain PyTorch run eagerly, which is the baseline; `torch.compile` of it;
`triton`; for the delta rules also flash-linear-attention's kernels where that package is installed.
On a GPU each is captured in a CUDA graph, so that kernels are compared and not their launches.

Shares of the hardware's ceilings, measured in the same run, follow from the work that cannot be
avoided: every input read once and every output written once over the bandwidth of a large copy,
the matrix products of the definition over the rate of a large one. With the backward pass, inputs
are read twice, gradients of outputs once, gradients of inputs are written, and products count
three times. The larger of the two shares says how near the time is to what is possible; where all
tensors fit into a cache, it may exceed 1.

Shapes: G cells, B batch, T tokens with M memory tokens, D hidden, F features, C chunk; H heads of
size K.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from memarch.bench.result import Document, Row, document, row
from memarch.bench.timing import Timed, Work, bandwidth, graphed, matrix_rate, side_by_side
from memarch.kernels.feature_maps import FeatureMap, num_features

Inputs = dict[str, Tensor]
Outputs = Tensor | tuple[Tensor, ...]
Function = Callable[..., Outputs]

BASELINE = "reference"
CHUNK = 64
FEATURES: FeatureMap = "dpfp3"


@dataclass(frozen=True)
class Sizes:
    """One layer's sizes, at which the operations are timed."""

    cells: int
    batch: int
    tokens: int
    memory_tokens: int
    width: int
    mlp: int
    d_mem: int
    heads: int
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        """N = G * B."""
        return self.cells * self.batch


LLAMA_1B = Sizes(
    cells=16,
    batch=1,
    tokens=1152,
    memory_tokens=128,
    width=2048,
    mlp=8192,
    d_mem=64,
    heads=16,
    dtype=torch.bfloat16,
)
SMALL = Sizes(
    cells=4,
    batch=8,
    tokens=40,
    memory_tokens=8,
    width=128,
    mlp=512,
    d_mem=32,
    heads=4,
    dtype=torch.float32,
)


@dataclass(frozen=True)
class Operation:
    """How one operation is called, and the work that it cannot avoid."""

    inputs: Callable[[Sizes, torch.device], Inputs]
    """Its tensors by the names of its arguments; those of numbers get gradients."""
    flops: Callable[[Sizes], int]
    """Of its matrix products, forward."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Its other arguments."""
    library: str = ""
    """`module:function` in flash-linear-attention."""


def _norm_inputs(sizes: Sizes, device: torch.device) -> Inputs:
    random = _random(sizes, device)
    return {
        "weight": random(sizes.cells, sizes.width),
        "x": random(sizes.rows, sizes.tokens, sizes.width),
    }


def _layer_norm_inputs(sizes: Sizes, device: torch.device) -> Inputs:
    bias = _random(sizes, device)(sizes.cells, sizes.width)
    return _norm_inputs(sizes, device) | {"bias": bias}


def _linear_inputs(sizes: Sizes, device: torch.device) -> Inputs:
    random = _random(sizes, device)
    return {
        "x": random(sizes.rows, sizes.tokens, sizes.width),
        "weight": random(sizes.cells, sizes.width, sizes.mlp) / sizes.width**0.5,
    }


def _linear_flops(sizes: Sizes) -> int:
    return 2 * sizes.rows * sizes.tokens * sizes.width * sizes.mlp


def _state_inputs(sizes: Sizes, device: torch.device) -> Inputs:
    random, features = _random(sizes, device), num_features(FEATURES, sizes.d_mem)
    return {
        "matrix": random(sizes.rows, features, sizes.width),
        "normalizer": random(sizes.rows, features).abs(),
        "empty": torch.zeros(sizes.rows, dtype=torch.bool, device=device),
    }


def _read_inputs(sizes: Sizes, device: torch.device) -> Inputs:
    random = _random(sizes, device)
    return _state_inputs(sizes, device) | {
        "x": random(sizes.rows, sizes.tokens, sizes.width),
        "query": random(sizes.rows, sizes.tokens, sizes.d_mem),
    }


def _read_flops(sizes: Sizes) -> int:
    """A^T phi(q)."""
    features = num_features(FEATURES, sizes.d_mem)
    return 2 * sizes.rows * sizes.tokens * features * sizes.width


def _write_inputs(sizes: Sizes, device: torch.device) -> Inputs:
    random, tokens = _random(sizes, device), (sizes.rows, sizes.memory_tokens)
    return _state_inputs(sizes, device) | {
        "keys": random(*tokens, sizes.d_mem),
        "values": random(*tokens, sizes.width),
        "beta": random(*tokens, 1).sigmoid(),
    }


def _write_flops(sizes: Sizes) -> int:
    """A^T phi(k), and the sum of phi(k) times what is to be added."""
    features = num_features(FEATURES, sizes.d_mem)
    return 4 * sizes.rows * sizes.memory_tokens * features * sizes.width


def _rule_inputs(sizes: Sizes, device: torch.device) -> Inputs:
    random, head = _random(sizes, device), sizes.width // sizes.heads
    long = (sizes.rows, sizes.tokens, sizes.heads)
    q, k, v = random(3, *long, head).unbind()
    return {
        "q": q,
        "k": F.normalize(k, dim=-1),
        "v": v,
        "beta": random(*long).sigmoid(),
        "state": random(sizes.rows, sizes.heads, head, head).float(),
    }


def _gated_rule_inputs(sizes: Sizes, device: torch.device) -> Inputs:
    inputs = _rule_inputs(sizes, device)
    return inputs | {"g": -F.softplus(_random(sizes, device)(*inputs["beta"].shape))}


def _rule_flops(sizes: Sizes) -> int:
    """Per token and head: K K^T and Q K^T in the chunk, the solve, W S, Q S, K^T U, (Q K^T) U."""
    head = sizes.width // sizes.heads
    inside = 2 * CHUNK * head * 5  # two products of scores, two right sides, scores times U
    across = 2 * head * head * 3
    return sizes.rows * sizes.tokens * sizes.heads * (inside + across)


def _no_products(_: Sizes) -> int:
    return 0


OPERATIONS: dict[str, Operation] = {
    "associative_read": Operation(_read_inputs, _read_flops, {"feature_map": FEATURES}),
    "associative_write": Operation(
        _write_inputs,
        _write_flops,
        {"rule": "delta", "correction": True, "feature_map": FEATURES, "weight": None},
    ),
    "rms_norm": Operation(_norm_inputs, _no_products, {"eps": 1e-6}),
    "layer_norm": Operation(_layer_norm_inputs, _no_products, {"eps": 1e-5}),
    "grouped_linear": Operation(_linear_inputs, _linear_flops, {"activation": "silu"}),
    "delta_rule": Operation(
        _rule_inputs,
        _rule_flops,
        {"chunk_size": CHUNK},
        library="fla.ops.delta_rule:chunk_delta_rule",
    ),
    "gated_delta_rule": Operation(
        _gated_rule_inputs,
        _rule_flops,
        {"chunk_size": CHUNK},
        library="fla.ops.gated_delta_rule:chunk_gated_delta_rule",
    ),
}


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    operations: Sequence[str]
    device: torch.device
    compile: bool
    seconds: float
    """Time for one case; each candidate runs three times at least."""


def run(settings: Settings, note: Callable[[str], None]) -> Iterator[Document]:
    """What is found so far, after every case; `note` is told of each as it begins."""
    device = settings.device
    sizes = LLAMA_1B if device.type == "cuda" else SMALL
    note("ceilings")
    bytes_rate, flops_rate = bandwidth(device), matrix_rate(device, sizes.dtype)
    product = f"{_short(sizes.dtype)} matrix product {flops_rate / 1e12:.3g} TFLOP/s"
    notes = [f"ceilings: copy {bytes_rate / 1e9:.0f} GB/s, {product}"]
    if device.type != "cuda":
        notes.append("Triton kernels were not timed: there is no GPU")
    rows: list[Row] = []
    for name in settings.operations:
        for backward in (False, True):
            case = _Case(name, sizes, device, backward)
            note(case.label)
            timed = side_by_side(
                case.candidates(settings.compile, notes), device, seconds=settings.seconds
            )
            rows += case.rows(timed, bytes_rate, flops_rate)
            yield document("kernels", device, rows, notes)


class _Case:
    """One operation in one direction."""

    def __init__(self, name: str, sizes: Sizes, device: torch.device, backward: bool) -> None:
        self.operation, self.sizes, self.device = OPERATIONS[name], sizes, device
        self.name, self.backward = name, backward
        self.inputs = self.operation.inputs(sizes, device)
        with torch.no_grad():
            outputs = _tuple(self.function("reference")(**self.inputs))
        self.gradients = tuple(torch.randn_like(output) for output in outputs)
        for tensor in self.inputs.values():
            tensor.requires_grad_(backward and tensor.is_floating_point())
        read, written = (
            sum(tensor.nbytes for tensor in tensors) for tensors in (self.inputs.values(), outputs)
        )
        self.bytes = 3 * read + 2 * written if backward else read + written
        self.flops = self.operation.flops(sizes) * (3 if backward else 1)

    @property
    def label(self) -> str:
        """The case in words."""
        sizes, direction = self.sizes, "forward and backward" if self.backward else "forward"
        size = f"{sizes.rows} x {sizes.tokens} x {sizes.width}"
        return f"{self.name}, {direction}, {size}, {_short(sizes.dtype)}"

    def function(self, impl: str) -> Function:
        """The operation, to be called with its tensors."""
        module = import_module(f"memarch.kernels.{self.name}")
        return partial(getattr(module, self.name), impl=impl, **self.operation.settings)

    def candidates(self, compile: bool, notes: list[str]) -> dict[str, Work]:
        """What is timed, each tried once; who cannot run is named in the notes."""
        reference = self.function("reference")
        functions: dict[str, Function] = {BASELINE: reference}
        if compile:
            torch.compiler.reset()
            functions["torch.compile"] = torch.compile(reference, dynamic=False)
        if self.device.type == "cuda":
            functions["triton"] = self.function("triton")
            if self.operation.library and find_spec("fla") is not None:
                functions["flash-linear-attention"] = _library(self.operation.library)
        works = {}
        for name, function in functions.items():
            work = self._work(function)
            try:
                _first_run(work)
            except Exception as error:
                if name == BASELINE:
                    raise
                notes.append(f"{name} of {self.name} was left out: {_first_line(error)}")
                continue
            works[name] = self._captured(name, work, notes)
        return works

    def _captured(self, name: str, work: Work, notes: list[str]) -> Work:
        try:
            return graphed(work, self.device)
        except RuntimeError as error:
            notes.append(
                f"{name} of {self.name} is timed with its launches, it cannot be captured: "
                f"{_first_line(error)}"
            )
            return work

    def _work(self, function: Function) -> Work:
        wanted = [tensor for tensor in self.inputs.values() if tensor.requires_grad]

        def forward() -> None:
            with torch.no_grad():
                function(**self.inputs)

        def forward_and_backward() -> None:
            outputs = _tuple(function(**self.inputs))
            torch.autograd.grad(outputs, wanted, self.gradients)

        return forward_and_backward if self.backward else forward

    def rows(self, timed: Mapping[str, Timed], bytes_rate: float, flops_rate: float) -> list[Row]:
        """Every candidate against the baseline, with its share of the ceilings."""
        rows = []
        for name in list(timed)[1:] or [BASELINE]:
            seconds = timed[name].median
            found = row(
                self.label,
                BASELINE,
                name,
                timed,
                mode="training" if self.backward else "inference",
                bytes=self.bytes,
                flops=self.flops,
                bandwidth_share=self.bytes / bytes_rate / seconds,
                matrix_share=self.flops / flops_rate / seconds,
            )
            if name == "triton":
                others = [each.median for other, each in timed.items() if other != name]
                found["speedup_over_best"] = min(others) / seconds
            rows.append(found)
        return rows


def _first_run(work: Work) -> None:
    with warnings.catch_warnings():  # the compiler looks through our cache of constants
        warnings.filterwarnings("ignore", message="Dynamo detected", category=UserWarning)
        work()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _library(path: str) -> Function:
    """A function of flash-linear-attention with our arguments."""
    module, _, name = path.partition(":")
    function = getattr(import_module(module), name)

    def call(*, state: Tensor, **inputs: Tensor) -> Outputs:
        outputs: Outputs = function(
            **inputs, scale=1.0, initial_state=state, output_final_state=True
        )
        return outputs

    return call


def _random(sizes: Sizes, device: torch.device) -> Callable[..., Tensor]:
    def random(*size: int) -> Tensor:
        return torch.randn(size, device=device, dtype=sizes.dtype)

    return random


def _tuple(outputs: Outputs) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
