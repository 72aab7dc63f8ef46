"""`bench diagonal` on a Llama shape: an ARMT reads one long input, batch 1, in low precision.

The ceilings come first, so that what follows can be read against them:

- matrix products: those of L cells, one cell at a time against grouped, both in CUDA graphs. Their
  ratio c bounds what grouping can win where nothing but the products takes time
- always-full group: S steps of a full group of L cells, the time of the S segments without the
  ramps at both ends; measured as the time of 2 S segments less that of S

Then the diagonal order against the sequential one and against the same backbone's full attention
over the whole input: as transformers has it, and as one segment of ours, which uses our leaves. The
error of logits is that of the last segment of (at most) 32,768 tokens, against the same parameters
run in float32: |x - x32| / |x32|.

Shapes: L layers, S segments, T tokens of a segment with its memory tokens, M memory tokens, D
hidden, F features.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from memarch.arch.build import build_model
from memarch.arch.model import MemarchModel
from memarch.bench.result import Row, row
from memarch.bench.shapes import Shape, born_on, build, in_order, token_ids
from memarch.bench.timing import Timed, Work, graphed, side_by_side
from memarch.kernels.feature_maps import num_features

ERROR_TOKENS = 32768


@dataclass(frozen=True)
class Found:
    """The rows of one shape, and what could not be measured."""

    rows: list[Row]
    notes: list[str]


def measure(
    shape: Shape, impl: str, device: torch.device, seconds: float, note: Callable[[str], None]
) -> Found:
    """Every row of one shape at one segment length."""
    _free(device)
    note("  matrix products")
    rows = [_products(shape, device, seconds)]
    _free(device)
    model = build(shape, "armt", impl, device)
    _fill_zeros(model)
    orders = _orders(model, device)
    note("  error against float32")
    errors = _errors(model, orders, shape, device)
    _free(device)
    note("  the whole input")
    work = {name: _write(each, shape, device, inputs=1) for name, each in orders.items()}
    notes = []
    fastest = list(orders)[-1]
    if shape.segments >= shape.layers:
        work[_TWICE] = _write(orders[fastest], shape, device, inputs=2)
    else:
        notes.append(f"{shape.label}: the group of {shape.layers} layers is never full")
    full = _full_attention(model, shape, impl, device)
    timed = side_by_side(work | full, device, seconds=seconds)

    def compare(baseline: str, candidate: str, **more: object) -> None:
        rate = shape.tokens / timed[candidate].median
        case = f"{shape.label}, armt, {shape.dtype}, inference, batch 1"
        sizes = {"mode": "inference", "batch": 1, "segments": shape.segments, "impl": impl}
        rows.append(row(case, baseline, candidate, timed, **sizes, tokens_per_second=rate, **more))

    if _TWICE in timed:
        timed[_FULL_GROUP] = _difference(timed.pop(_TWICE), timed[fastest])
        compare(_FULL_GROUP, fastest)
    for baseline, candidate in _pairs(list(orders)):
        compare(
            baseline,
            candidate,
            baseline_error=errors[baseline],
            candidate_error=errors[candidate],
        )
    for baseline in full:
        compare(baseline, fastest)
    return Found(rows, notes)


_FULL_GROUP = "always-full group"
_TWICE = "twice the input"


def _free(device: torch.device) -> None:
    """Give back what earlier models held in cycles of references."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _orders(model: MemarchModel, device: torch.device) -> dict[str, MemarchModel]:
    """The orders to compare, the fastest last; on a GPU also with CUDA graphs."""
    names = ("sequential", "diagonal")
    found = {name: in_order(model, name, graphs=False) for name in names}
    if device.type == "cuda":
        found |= {f"{name}, graphs": in_order(model, name, graphs=True) for name in names}
    return found


def _pairs(orders: list[str]) -> list[tuple[str, str]]:
    """Diagonal over sequential alike in graphs, and the fastest over the slowest."""
    pairs = [(orders[i], orders[i + 1]) for i in range(0, len(orders), 2)]
    return list(dict.fromkeys([*pairs, (orders[0], orders[-1])]))


def _products(shape: Shape, device: torch.device, seconds: float) -> Row:
    """The matrix products of L cells, one cell at a time and grouped."""
    sizes = _product_sizes(shape)
    dtype = getattr(torch, shape.dtype)
    many = shape.layers

    def random(*size: int) -> Tensor:
        return torch.randn(size, device=device, dtype=dtype)

    inputs = {(rows, inner): random(many, rows, inner) for rows, inner, _ in sizes}
    weights = [random(many, inner, outer) for _, inner, outer in sizes]
    outputs = {(rows, outer): random(many, rows, outer) for rows, _, outer in sizes}
    operands = [
        (inputs[rows, inner], weight, outputs[rows, outer])
        for (rows, inner, outer), weight in zip(sizes, weights, strict=True)
    ]

    def one_by_one() -> None:
        for cell in range(many):
            for x, weight, y in operands:
                torch.mm(x[cell], weight[cell], out=y[cell])

    def grouped() -> None:
        for x, weight, y in operands:
            torch.bmm(x, weight, out=y)

    timed = side_by_side(
        {"one cell at a time": graphed(one_by_one, device), "grouped": graphed(grouped, device)},
        device,
        seconds=seconds / 4,
    )
    flops = 2 * many * sum(rows * inner * outer for rows, inner, outer in sizes)
    return row(
        f"{shape.label}, {shape.dtype}, matrix products of {many} cells",
        "one cell at a time",
        "grouped",
        timed,
        baseline_flops_per_second=flops / timed["one cell at a time"].median,
        candidate_flops_per_second=flops / timed["grouped"].median,
    )


def _product_sizes(shape: Shape) -> list[tuple[int, int, int]]:
    """Rows, inner and outer size of every matrix product in one cell but those of attention."""
    length, tokens = shape.segment_length + shape.memory_tokens, shape.memory_tokens
    width, keys = shape.width, shape.kv_heads * shape.width // shape.heads
    features = num_features("dpfp3", shape.d_mem)
    layer = [(width, width), (width, keys), (width, keys), (width, width)]
    mlp = [(width, shape.mlp), (width, shape.mlp), (shape.mlp, width)]
    read = [(width, shape.d_mem), (features, width)]
    write = [(tokens, width, shape.d_mem), (tokens, width, width), (features, tokens, width)]
    return [(length, *sizes) for sizes in layer + mlp + read] + write


def _write(model: MemarchModel, shape: Shape, device: torch.device, *, inputs: int) -> Work:
    ids = token_ids(shape, 1, device, tokens=inputs * shape.segments * shape.segment_length)

    def work() -> None:
        with torch.no_grad():
            model.write(ids)

    return work


def _full_attention(
    model: MemarchModel, shape: Shape, impl: str, device: torch.device
) -> dict[str, Work]:
    """Prefill of the model's backbone by causal attention over the whole input."""
    parameters = model.backbone.state_dict()
    config = copy.deepcopy(model.backbone.config)
    spec = shape.spec({}, impl) | {"segment_length": shape.tokens}
    with born_on(device, shape.dtype):
        theirs = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
        ours = build_model(spec, vocab_size=shape.vocab).eval()
    theirs.load_state_dict(parameters, assign=True)
    ours.backbone.load_state_dict(parameters, assign=True)
    ids = token_ids(shape, 1, device, tokens=shape.tokens)

    def prefill() -> None:
        with torch.no_grad():
            theirs(ids, use_cache=False, logits_to_keep=1)

    return {
        "full attention, transformers": prefill,
        "full attention, one segment": _write(ours, shape, device, inputs=1),
    }


def _difference(longer: Timed, shorter: Timed) -> Timed:
    """Turn by turn, what the longer work took beyond the shorter."""
    pairs = zip(longer.seconds, shorter.seconds, strict=True)
    return Timed([long - short for long, short in pairs], longer.peak_bytes)


@torch.no_grad()
def _errors(
    model: MemarchModel, orders: dict[str, MemarchModel], shape: Shape, device: torch.device
) -> dict[str, float]:
    """Each order's relative error of the last segment's logits."""
    count = min(shape.segments, max(2, ERROR_TOKENS // shape.segment_length))
    ids = token_ids(shape, 1, device, tokens=count * shape.segment_length)

    def logits(of: MemarchModel) -> Tensor:
        head, last = ids[:, : -shape.segment_length], ids[:, -shape.segment_length :]
        return of(last, memory=of.write(head)).logits.float()

    exact = logits(copy.deepcopy(model).float())
    size = exact.norm()
    return {name: float((logits(each) - exact).norm() / size) for name, each in orders.items()}


@torch.no_grad()
def _fill_zeros(model: nn.Module) -> None:
    """Random numbers where parameters start at zero: nothing stored is nothing to be wrong in."""
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02)
