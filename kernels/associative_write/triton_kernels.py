"""The associative write in Triton: A is read once, A' written once, all between stays on chip.

A program holds all features of one row and a block of D: the old A, and A' in float32, to which
blocks of tokens are added one after the other, each with the values that the old A recalls. One
program more a row does the normaliser, and leaves gamma times weight for the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memarch.kernels.associative_read.triton_kernels import (
    block_features,
    clamp_block,
    dense,
    dot,
    falling,
    feature_tile,
    kind,
    load_state,
    processors,
    shared_memory,
)
from memarch.kernels.associative_write.reference import Rule
from memarch.kernels.feature_maps import FeatureMap
from memarch.kernels.recall import EPS

THREADS = 256
"""Of a program."""


@triton.jit
def _load_scalars(x, row, begin, exists, num_tokens, M: tl.constexpr):
    """Of M tokens; 1 where x is None."""
    if x is None:
        return tl.full([M], 1.0, dtype=tl.float32)
    at = x + row * num_tokens + begin + tl.arange(0, M)
    return tl.load(at, mask=exists, other=0.0).to(tl.float32)


@triton.jit
def _write_matrix(
    matrix,
    normalizer,
    keys,
    values,
    strength,
    unwritten,
    new_matrix,
    row,
    edge,
    num_tokens,
    width,
    matrix_feature,
    values_token,
    EPS: tl.constexpr,
    RULE: tl.constexpr,
    MAP: tl.constexpr,
    d: tl.constexpr,
    num_features: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    columns = edge + tl.arange(0, BLOCK_WIDTH)
    tokens = tl.arange(0, BLOCK_TOKENS)
    dtype = keys.dtype.element_ty
    olds = ()
    news = ()
    for start in tl.static_range(0, num_features, BLOCK_FEATURES):
        features = falling(start, BLOCK_FEATURES)
        a = load_state(matrix, features, num_features, columns, width, matrix_feature)
        olds = olds + (a.to(dtype),)  # noqa: RUF005 (Triton has no starred expressions)
        news = news + (a.to(tl.float32),)  # noqa: RUF005

    for begin in range(0, num_tokens, BLOCK_TOKENS):
        exists = tokens < num_tokens - begin
        first = keys + (row * num_tokens + begin) * d
        at = values + (begin + tokens).to(tl.int64)[:, None] * values_token + columns[None, :]
        mask = exists[:, None] & (columns < width)[None, :]
        errors = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        phis = ()
        denominator = tl.full([BLOCK_TOKENS], EPS, dtype=tl.float32)
        recalled = tl.zeros([BLOCK_TOKENS, BLOCK_WIDTH], dtype=tl.float32)
        for start in tl.static_range(0, num_features, BLOCK_FEATURES):
            features = falling(start, BLOCK_FEATURES)
            phi = feature_tile(first, exists, features, MAP, d, num_features, BLOCK_TOKENS, MASKED)
            phis = phis + (phi.to(dtype),)  # noqa: RUF005
            if RULE == "delta":
                z = tl.load(normalizer + features, mask=features < num_features, other=0.0)
                denominator += tl.sum(phi * z.to(tl.float32)[None, :], axis=1)
                recalled = dot(phi.to(dtype), olds[start // BLOCK_FEATURES], recalled)
        if RULE == "delta":
            errors -= recalled * tl.where(unwritten, 0.0, 1 / denominator)[:, None]
        scale = _load_scalars(strength, row, begin, exists, num_tokens, BLOCK_TOKENS)
        update = (errors * scale[:, None]).to(dtype)
        sums = ()
        for start in tl.static_range(0, num_features, BLOCK_FEATURES):
            phi = tl.trans(phis[start // BLOCK_FEATURES])
            sums = sums + (dot(phi, update, news[start // BLOCK_FEATURES]),)  # noqa: RUF005
        news = sums

    for start in tl.static_range(0, num_features, BLOCK_FEATURES):
        features = falling(start, BLOCK_FEATURES)
        mask = (features < num_features)[:, None] & (columns < width)[None, :]
        at = new_matrix + row * num_features * width + features[:, None] * width + columns[None, :]
        tl.store(at, news[start // BLOCK_FEATURES], mask=mask)


@triton.jit
def _write_normalizer(
    normalizer,
    keys,
    weight,
    unwritten,
    new_normalizer,
    gain,
    row,
    num_tokens,
    EPS: tl.constexpr,
    MAP: tl.constexpr,
    d: tl.constexpr,
    num_features: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    tokens = tl.arange(0, BLOCK_TOKENS)
    news = ()
    for start in tl.static_range(0, num_features, BLOCK_FEATURES):
        features = falling(start, BLOCK_FEATURES)
        z = tl.load(normalizer + features, mask=features < num_features, other=0.0)
        news = news + (z.to(tl.float32),)  # noqa: RUF005

    for begin in range(0, num_tokens, BLOCK_TOKENS):
        exists = tokens < num_tokens - begin
        first = keys + (row * num_tokens + begin) * d
        factor = _load_scalars(weight, row, begin, exists, num_tokens, BLOCK_TOKENS)
        if gain is not None:
            denominator = tl.full([BLOCK_TOKENS], EPS, dtype=tl.float32)
            norm = tl.full([BLOCK_TOKENS], EPS, dtype=tl.float32)
            for start in tl.static_range(0, num_features, BLOCK_FEATURES):
                features = falling(start, BLOCK_FEATURES)
                phi = feature_tile(
                    first, exists, features, MAP, d, num_features, BLOCK_TOKENS, MASKED
                )
                z = tl.load(normalizer + features, mask=features < num_features, other=0.0)
                denominator += tl.sum(phi * z.to(tl.float32)[None, :], axis=1)
                norm += tl.sum(phi * phi, axis=1)
            gamma = 1 - tl.minimum(tl.maximum(denominator / norm, 0.0), 1.0)
            factor *= tl.where(unwritten, 1.0, gamma)
            tl.store(gain + row * num_tokens + begin + tokens, factor, mask=exists)
        sums = ()
        for start in tl.static_range(0, num_features, BLOCK_FEATURES):
            features = falling(start, BLOCK_FEATURES)
            phi = feature_tile(first, exists, features, MAP, d, num_features, BLOCK_TOKENS, MASKED)
            added = tl.sum(phi * factor[:, None], axis=0)
            sums = sums + (news[start // BLOCK_FEATURES] + added,)  # noqa: RUF005
        news = sums

    for start in tl.static_range(0, num_features, BLOCK_FEATURES):
        features = falling(start, BLOCK_FEATURES)
        at = new_normalizer + row * num_features + features
        tl.store(at, news[start // BLOCK_FEATURES], mask=features < num_features)


@triton.jit
def _write(
    matrix,
    normalizer,
    keys,
    values,
    strength,
    weight,
    empty,
    new_matrix,
    new_normalizer,
    gain,
    num_tokens,
    width,
    matrix_row,
    matrix_feature,
    normalizer_row,
    values_row,
    values_token,
    EPS: tl.constexpr,
    RULE: tl.constexpr,
    MAP: tl.constexpr,
    d: tl.constexpr,
    num_features: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    across = tl.cdiv(width, BLOCK_WIDTH)
    block = tl.program_id(0) % (across + 1)
    row = (tl.program_id(0) // (across + 1)).to(tl.int64)
    unwritten = tl.load(empty + row)
    if block == across:
        _write_normalizer(
            normalizer + row * normalizer_row,
            keys,
            weight,
            unwritten,
            new_normalizer,
            gain,
            row,
            num_tokens,
            EPS,
            MAP,
            d,
            num_features,
            MASKED,
            BLOCK_TOKENS,
            BLOCK_FEATURES,
        )
    else:
        _write_matrix(
            matrix + row * matrix_row,
            normalizer + row * normalizer_row,
            keys,
            values + row * values_row,
            strength,
            unwritten,
            new_matrix,
            row,
            block * BLOCK_WIDTH,
            num_tokens,
            width,
            matrix_feature,
            values_token,
            EPS,
            RULE,
            MAP,
            d,
            num_features,
            MASKED,
            BLOCK_TOKENS,
            BLOCK_FEATURES,
            BLOCK_WIDTH,
        )


def write(
    matrix: Tensor,
    normalizer: Tensor,
    keys: Tensor,
    values: Tensor,
    strength: Tensor | None,
    weight: Tensor | None,
    empty: Tensor,
    name: FeatureMap,
    rule: Rule,
    correction: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The new matrix and normaliser, and the gain `[N, M, 1]`, None where it is 1."""
    matrix, normalizer, values = map(dense, (matrix, normalizer, values))
    rows, num_features, width = matrix.shape
    num_tokens = keys.shape[1]
    new_matrix = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    new_normalizer = torch.empty(normalizer.shape, dtype=normalizer.dtype, device=matrix.device)
    gain = None
    if correction:
        gain = torch.empty(rows, num_tokens, 1, dtype=torch.float32, device=matrix.device)
    blocks = _choose_blocks(matrix, num_tokens, keys.dtype)
    programs = rows * (triton.cdiv(width, blocks.width) + 1)
    if rows > 0:
        with torch.cuda.device_of(matrix):
            _write[(programs,)](
                matrix,
                normalizer,
                keys.contiguous(),
                values,
                None if strength is None else strength.contiguous(),
                None if weight is None else weight.contiguous(),
                empty.contiguous(),
                new_matrix,
                new_normalizer,
                gain,
                num_tokens,
                width,
                *matrix.stride()[:2],
                normalizer.stride(0),
                *values.stride()[:2],
                EPS=EPS,
                RULE=rule,
                MAP=kind(name),
                d=keys.shape[2],
                num_features=num_features,
                MASKED=num_tokens % blocks.tokens > 0 or num_features % blocks.features > 0,
                BLOCK_TOKENS=blocks.tokens,
                BLOCK_FEATURES=blocks.features,
                BLOCK_WIDTH=blocks.width,
                num_warps=THREADS // 32,
                num_stages=1,
            )
    return new_matrix, new_normalizer, weight if gain is None else gain


class Blocks(NamedTuple):
    """What a program holds at once, beside all features."""

    tokens: int
    features: int
    width: int


def _choose_blocks(matrix: Tensor, num_tokens: int, dtype: torch.dtype) -> Blocks:
    """phi and A in shared memory; A' in registers, beside a tile of phi and what makes it.

    A thread has 255 registers. Products in float32 keep their factors there too.
    """
    rows, num_features, width = matrix.shape
    narrow = dtype.itemsize == 2
    features = block_features(num_features, 128 if narrow else 32)
    held = triton.cdiv(num_features, features) * features
    block_width = clamp_block(width, 64 if narrow else 32)
    while block_width > 16 and (
        held * block_width > (128 if narrow else 32) * THREADS
        or rows * triton.cdiv(width, block_width) < processors(matrix)
    ):
        block_width //= 2
    tokens = clamp_block(num_tokens, 128 if narrow else 32)
    limit = shared_memory(matrix.device)
    while tokens > 16 and (
        (tokens + block_width) * held * dtype.itemsize > limit
        or held * block_width + 5 * tokens * features > 240 * THREADS
    ):
        tokens //= 2
    return Blocks(tokens, features, block_width)
