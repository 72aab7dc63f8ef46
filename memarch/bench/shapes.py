"""The models that are measured: sizes, and how such a model is made.

`small` holds the two sizes at which searches run on a CPU; the others are Llama sizes with random
weights, read over 131,072 tokens at four segment lengths. Nothing heavy is imported for the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from memarch.components.errors import SpecError

if TYPE_CHECKING:
    import torch

    from memarch.arch.model import MemarchModel


@dataclass(frozen=True)
class Shape:
    """A Llama backbone with a memory in every layer, and the input that it reads."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    memory_tokens: int
    d_mem: int
    segment_length: int
    tokens: int
    dtype: str
    long_input: bool
    """Whether it is measured as a long input is (`bench.long_input`)."""

    @property
    def segments(self) -> int:
        """How many segments the input has."""
        return -(-self.tokens // self.segment_length)

    @property
    def label(self) -> str:
        """The shape in a case's name."""
        return f"{self.name}, {self.segments} segments of {self.segment_length}"

    def cut_to(self, tokens: int) -> Shape:
        """The same with as many whole segments, one at least, as so many tokens hold."""
        whole = max(1, tokens // self.segment_length) * self.segment_length
        return replace(self, tokens=min(self.tokens, whole))

    def memory(self, name: str) -> dict[str, Any]:
        """The settings of a memory at this size."""
        if name == "armt":
            sizes = {"num_tokens": self.memory_tokens, "d_mem": self.d_mem}
            return {"main": {"type": "armt", **sizes}}
        return {"main": {"type": name, "heads": self.heads}}

    def spec(self, memory: dict[str, Any], impl: str) -> dict[str, Any]:
        """The spec of a model of this shape, in the sequential order."""
        return {
            "backbone": {
                "type": "llama",
                "num_hidden_layers": self.layers,
                "hidden_size": self.width,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads,
                "intermediate_size": self.mlp,
                "vocab_size": self.vocab,
            },
            "memory": memory,
            "segment_length": self.segment_length,
            "schedule": "sequential",
            "impl": impl,
        }


MEMORIES = ("armt", "deltanet")
MODES = ("inference", "training")


def _small(layers: int, width: int, segment_length: int) -> Shape:
    return Shape(
        name=f"{layers} layers of width {width}",
        layers=layers,
        width=width,
        heads=4,
        kv_heads=4,
        mlp=4 * width,
        vocab=64,
        memory_tokens=8,
        d_mem=32,
        segment_length=segment_length,
        tokens=2048,
        dtype="float32",
        long_input=False,
    )


def _llama(
    name: str, layers: int, width: int, heads: int, kv_heads: int, mlp: int
) -> tuple[Shape, ...]:
    return tuple(
        Shape(
            name=name,
            layers=layers,
            width=width,
            heads=heads,
            kv_heads=kv_heads,
            mlp=mlp,
            vocab=128256,
            memory_tokens=128,
            d_mem=64,
            segment_length=segment_length,
            tokens=131072,
            dtype="bfloat16",
            long_input=True,
        )
        for segment_length in (1024, 512, 2048, 4096)
    )


PRESETS: dict[str, tuple[Shape, ...]] = {
    "small": (_small(4, 128, 32), _small(12, 64, 16)),
    "llama-1b": _llama("Llama 1B", 16, 2048, 32, 8, 8192),
    "llama-160m": _llama("Llama 160M", 12, 768, 12, 12, 3072),
    "llama-3b": _llama("Llama 3B", 28, 3072, 24, 8, 8192),
}


def adapt(
    shapes: Sequence[Shape],
    *,
    layers: int | None,
    width: int | None,
    segment_lengths: Sequence[int] | None,
    segments: int | None,
) -> list[Shape]:
    """The shapes with other sizes where these are given, each once."""
    found: dict[Shape, None] = {}
    for shape in shapes:
        if layers is not None or width is not None:
            shape = _resized(shape, layers or shape.layers, width or shape.width)
        for length in segment_lengths or (shape.segment_length,):
            tokens = shape.tokens if segments is None else segments * length
            found[replace(shape, segment_length=length, tokens=tokens)] = None
    return list(found)


def _resized(shape: Shape, layers: int, width: int) -> Shape:
    if width % shape.heads:
        raise SpecError(f"--width must be a multiple of the {shape.heads} heads, got {width}")
    mlp = shape.mlp * width // shape.width
    return replace(
        shape, name=f"{layers} layers of width {width}", layers=layers, width=width, mlp=mlp
    )


def build(shape: Shape, memory: str, impl: str, device: torch.device) -> MemarchModel:
    """A model of this shape in evaluation mode, its random weights made on the device."""
    from memarch.arch.build import build_model

    with born_on(device, shape.dtype):
        spec = shape.spec(shape.memory(memory), impl)
        return build_model(spec, vocab_size=shape.vocab, seed=0).eval()


@contextmanager
def born_on(device: torch.device, dtype: str) -> Iterator[None]:
    """Make new parameters on this device and of this type."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def in_order(model: MemarchModel, schedule: str, *, graphs: bool = True) -> MemarchModel:
    """The same parameters in another order of cells; SpecError where that is impossible.

    `graphs`: whether inference on a GPU may use CUDA graphs.
    """
    other = model.respec(model.spec.model_copy(update={"schedule": schedule}))
    other.cuda_graphs = graphs
    other.resolved_schedule()
    return other


def token_ids(shape: Shape, batch: int, device: torch.device, *, tokens: int) -> torch.Tensor:
    """Random ids `[batch, tokens]`, the same each time."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, shape.vocab, (batch, tokens), generator=generator).to(device)
