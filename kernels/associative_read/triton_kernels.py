"""The associative read in Triton: A and x are read once, out is written once, phi stays on chip.

A program serves a block of tokens of one row. It makes phi of their queries once, in blocks of
features, and keeps it; then it goes through a span of D block by block: x and A come in, phi A is
divided by the denominators and added to x. Rows that have stored nothing have a scale of 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memarch.kernels.feature_maps import FeatureMap
from memarch.kernels.recall import EPS

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(x, y, total):
    """total + x y with x and y in one type, added up in float32."""
    if INTERPRETED:  # it takes the bits of bfloat16 for integers
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, total, input_precision="ieee")


@triton.jit
def falling(start, BLOCK: tl.constexpr):
    """start + BLOCK - 1, ..., start: the order of features inside a block.

    It is free, and in this one the compiler does not give a thread neighbours, whose places after
    a roll are many, but one feature of many vectors.
    """
    return start + BLOCK - 1 - tl.arange(0, BLOCK)


@triton.jit
def _load_vectors(first, columns, mask, M: tl.constexpr, d: tl.constexpr, MASKED: tl.constexpr):
    """`columns` of the M vectors from `first` on; masks only where they are needed, they cost."""
    at = (first + tl.arange(0, M)[:, None] * d) + columns[None, :]
    if MASKED:
        return tl.load(at, mask=mask, other=0.0).to(tl.float32)
    return tl.load(at).to(tl.float32)


@triton.jit
def _rectified(first, position, mask, M: tl.constexpr, d: tl.constexpr, MASKED: tl.constexpr):
    """[relu(x); relu(-x)] at the positions."""
    positive = position < d
    x = _load_vectors(first, tl.where(positive, position, position - d), mask, M, d, MASKED)
    return tl.maximum(tl.where(positive[None, :], x, -x), 0.0)


@triton.jit
def feature_tile(
    first,
    exists,
    features,
    MAP: tl.constexpr,
    d: tl.constexpr,
    num_features: tl.constexpr,
    M: tl.constexpr,
    MASKED: tl.constexpr,
):
    """phi `[M, F]` in float32 of the M vectors `[d]` that follow one another from `first` on.

    Vectors that do not exist and features past the last give 0; without them MASKED is False.
    """
    mask = exists[:, None] & (features < num_features)[None, :]
    if MAP == "dpfp":
        position = features % (2 * d)
        rolled = (position + 4 * d - 1 - features // (2 * d)) % (2 * d)
        r = _rectified(first, position, mask, M, d, MASKED)
        return r * _rectified(first, rolled, mask, M, d, MASKED)
    x = _load_vectors(first, features, mask, M, d, MASKED)
    if MAP == "elu1":
        phi = tl.where(x > 0, x + 1, tl.exp(x))
        return tl.where(mask, phi, 0.0) if MASKED else phi
    return tl.maximum(x, 0.0)


@triton.jit
def load_state(matrix, features, num_features, columns, width, stride):
    """`[F, D]` of a row's A."""
    mask = (features < num_features)[:, None] & (columns < width)[None, :]
    return tl.load(matrix + (features[:, None] * stride + columns[None, :]), mask=mask, other=0.0)


@triton.jit
def _read(
    x,
    query,
    matrix,
    normalizer,
    empty,
    out,
    time,
    width,
    span,
    x_row,
    x_time,
    matrix_row,
    matrix_feature,
    normalizer_row,
    EPS: tl.constexpr,
    MAP: tl.constexpr,
    d: tl.constexpr,
    num_features: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_TIME: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    program = tl.program_id(0)
    across, along = tl.cdiv(width, span), tl.cdiv(time, BLOCK_TIME)
    left = program % across * span
    # The last block begins earlier rather than end later: some tokens are then computed twice.
    begin = program // across % along * BLOCK_TIME
    begin = tl.maximum(tl.minimum(begin, time - BLOCK_TIME), 0).to(tl.int64)
    row = (program // across // along).to(tl.int64)
    times = tl.arange(0, BLOCK_TIME)
    exists = times < time - begin

    x += row * x_row + begin * x_time
    out += (row * time + begin) * width
    first = query + (row * time + begin) * d
    matrix += row * matrix_row
    normalizer += row * normalizer_row
    dtype = query.dtype.element_ty

    phis = ()
    denominator = tl.full([BLOCK_TIME], EPS, dtype=tl.float32)
    for start in tl.static_range(0, num_features, BLOCK_FEATURES):
        features = falling(start, BLOCK_FEATURES)
        phi = feature_tile(first, exists, features, MAP, d, num_features, BLOCK_TIME, MASKED)
        z = tl.load(normalizer + features, mask=features < num_features, other=0.0).to(tl.float32)
        denominator += tl.sum(phi * z[None, :], axis=1)
        phis = phis + (phi.to(dtype),)  # noqa: RUF005 (Triton has no starred expressions)
    scale = tl.where(tl.load(empty + row), 0.0, 1 / denominator)

    for edge in range(left, tl.minimum(left + span, width), BLOCK_WIDTH):
        columns = edge + tl.arange(0, BLOCK_WIDTH)
        mask = exists[:, None] & (columns < width)[None, :]
        old = tl.load(x + (times[:, None] * x_time + columns[None, :]), mask=mask, other=0.0)
        y = tl.zeros([BLOCK_TIME, BLOCK_WIDTH], dtype=tl.float32)
        for start in tl.static_range(0, num_features, BLOCK_FEATURES):
            features = falling(start, BLOCK_FEATURES)
            a = load_state(matrix, features, num_features, columns, width, matrix_feature)
            y = dot(phis[start // BLOCK_FEATURES], a.to(dtype), y)
        y = old.to(tl.float32) + y * scale[:, None]
        tl.store(out + (times[:, None] * width + columns[None, :]), y, mask=mask)


def read(
    x: Tensor, query: Tensor, matrix: Tensor, normalizer: Tensor, empty: Tensor, name: FeatureMap
) -> Tensor:
    """x + y. Any strides but those of query, and of the last dimension, which must be dense."""
    x, matrix, normalizer = map(dense, (x, matrix, normalizer))
    rows, time, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    blocks = _choose_blocks(x, matrix.shape[1], query.dtype)
    programs = rows * triton.cdiv(time, blocks.time) * triton.cdiv(width, blocks.span)
    with torch.cuda.device_of(x):
        _read[(programs,)](
            x,
            query.contiguous(),
            matrix,
            normalizer,
            empty.contiguous(),
            out,
            time,
            width,
            blocks.span,
            *x.stride()[:2],
            *matrix.stride()[:2],
            normalizer.stride(0),
            EPS=EPS,
            MAP=kind(name),
            d=query.shape[2],
            num_features=matrix.shape[1],
            MASKED=time < blocks.time or matrix.shape[1] % blocks.features > 0,
            BLOCK_TIME=blocks.time,
            BLOCK_FEATURES=blocks.features,
            BLOCK_WIDTH=blocks.width,
            num_warps=blocks.num_warps,
            num_stages=blocks.num_stages,
        )
    return out


class Blocks(NamedTuple):
    """What a program holds at once, the part of D that it goes through, and how it is run."""

    time: int
    features: int
    width: int
    span: int
    num_warps: int
    num_stages: int


def _choose_blocks(x: Tensor, num_features: int, dtype: torch.dtype) -> Blocks:
    """phi and two panels of A in shared memory; one panel, and less of each, in float32."""
    rows, time, width = x.shape
    narrow = dtype.itemsize == 2
    panels = 2 if narrow else 1
    features = block_features(num_features, 128 if narrow else 32)
    block_time = clamp_block(time, 128 if narrow else 32)
    block_width = clamp_block(width, 64 if narrow else 32)
    column = triton.cdiv(num_features, features) * features * dtype.itemsize
    limit = shared_memory(x.device)
    while (block_time + panels * block_width) * column > limit and block_time > 16:
        block_time //= 2
        block_width = max(16, block_width // 2)
    span = _choose_span(rows * triton.cdiv(time, block_time), width, block_width, processors(x))
    return Blocks(block_time, features, block_width, span, 8 if block_time == 128 else 4, panels)


def _choose_span(programs: int, width: int, block_width: int, processors: int) -> int:
    """D is divided where that shortens the time of all: phi costs a program as much as 4 blocks."""
    blocks = triton.cdiv(width, block_width)

    def duration(length: int) -> int:
        return triton.cdiv(programs * triton.cdiv(blocks, length), processors) * (4 + length)

    return min(range(1, blocks + 1), key=duration) * block_width


def block_features(num_features: int, most: int) -> int:
    """Blocks that end where the features do, where a power of two from 16 on allows it."""
    fitting = num_features & -num_features
    return min(fitting, most) if fitting >= 16 else clamp_block(num_features, 32)


def clamp_block(size: int, most: int) -> int:
    """A power of two that a matrix product takes and that holds `size` if `most` allows."""
    return min(max(16, triton.next_power_of_2(size)), most)


def shared_memory(device: torch.device) -> int:
    """Bytes that a program may hold, with room for what the compiler adds."""
    if device.type != "cuda":
        return 128 * 1024
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin) - 16 * 1024


def processors(x: Tensor) -> int:
    """Programs that run at the same time, at one a multiprocessor."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 4


def dense(x: Tensor) -> Tensor:
    """x, copied where its last dimension has gaps."""
    return x if x.stride(-1) == 1 else x.contiguous()


def kind(name: FeatureMap) -> str:
    """What the kernels tell apart: nu shows in the number of features."""
    return "dpfp" if name.startswith("dpfp") else name
