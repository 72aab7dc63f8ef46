"""Token memory: a few vectors beside the input, carried from segment to segment.

The state is `tokens` `[B, n, D]`, at first a learned M_0; the backbone attends to it as a prefix.

Written by a forward pass, it is the Recurrent Memory Transformer (preset `rmt`, arXiv 2207.06881):

    h = stack([M_s; x_s; M_s]),  M_{s+1} = the last n rows of h (after the final norm)

repeated `steps` times with the new memory in both places (GradMem's "RMT x K writes"); optionally
what goes into a write passes a linear projection P (a read takes M_s itself), and what comes out is
M_s + LayerNorm(new).

Written by gradient steps, it is GradMem (preset `gradmem`, arXiv 2603.13875, eq. 4-8):

    L(M) = mean over i of -log p(x_i | [c_ws; P(M); c_we; x_<i]),  M_{k+1} = M_k - alpha grad L(M_k)

and it is read as [c_rs; P(M); c_re; x], with optional control tokens c, a projection P that is
shared (trained by the outer loss only) or per sample (W, b start at the learned ones and take the
same gradient steps, so they are state), and an optional separate head for L.

A segment's own outputs always come from the memory before its write, so they stay causal.
Shapes: B batch, T tokens of the segment, n memory tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from memarch.components.memory import (
    BuildContext,
    Memory,
    MemorySettings,
    Segment,
    Site,
    Stack,
    State,
    Strict,
    keep_empty_rows,
    memories,
)
from memarch.components.writers.gradient import GradientMode, gradient_write


class ForwardWrite(Strict):
    """Read the segment again with the memory at its end; what stands there is the new memory."""

    type: Literal["forward"] = "forward"
    steps: Annotated[int, Field(ge=1)] = 1
    """Passes over the segment, each with the memory that the last one wrote."""
    projection: Literal["none", "shared"] = "none"
    """A linear map, at first the identity, on the memory that goes into each writing pass."""
    residual: bool = False
    """Add the layer-normalised new memory to the old one instead of replacing it."""


class GradientWrite(Strict):
    """Descend the loss of reconstructing the segment from the memory."""

    type: Literal["gradient"] = "gradient"
    steps: Annotated[int, Field(ge=0)] = 1
    """Gradient steps per segment (K); may differ between training and evaluation."""
    step_size: Annotated[float, Field(gt=0)] = 0.4
    """alpha, for the mean loss over a sample's tokens."""
    mode: GradientMode = "second"
    """What of the inner loop the outer gradient sees."""
    second_order_steps: Annotated[int, Field(ge=0)] | None = None
    """With `mode: second`: only the last so many steps are of second order (all by default)."""
    head: Literal["shared", "separate"] = "shared"
    """Head of the reconstruction loss: the language model's, or its own that starts as a copy."""
    projection: Literal["none", "shared", "per_sample"] = "none"
    """A linear map, at first the identity, between the memory and the model."""
    control_tokens: Annotated[int, Field(ge=0)] = 0
    """Learned tokens before and after the memory, different ones for writing and reading."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of a sample's gradient."""
    clip_value: Annotated[float, Field(gt=0)] | None = None
    """Largest absolute value of a gradient's element."""
    loss_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight with which the last step's reconstruction loss joins the training loss."""


class PrefixRead(Strict):
    """The memory stands before the segment's tokens."""

    type: Literal["prefix"] = "prefix"


@memories.register("tokens")
class TokenMemory(Memory):
    """Memory vectors in the input; see the module's docstring for the equations."""

    site: ClassVar[Site] = "segment"
    scales_with_width: ClassVar[tuple[str, ...]] = ("num_tokens",)

    class Settings(MemorySettings):
        """Vectors that the backbone reads as tokens."""

        type: Literal["tokens"] = "tokens"
        num_tokens: Annotated[int, Field(ge=1)] = 8
        """Memory vectors (n)."""
        write: Annotated[ForwardWrite | GradientWrite, Field(discriminator="type")] = ForwardWrite()
        read: PrefixRead = PrefixRead()

    def __init__(self, settings: Settings, context: BuildContext) -> None:
        super().__init__()
        self.settings = settings
        self.std = context.initializer_range
        write, size = settings.write, context.hidden_size
        self.tokens = nn.Parameter(torch.empty(settings.num_tokens, size))
        self.projection = nn.Linear(size, size) if write.projection != "none" else None
        self.per_sample = write.projection == "per_sample"
        self.residual_norm = None
        self.controls = None
        self.head = None
        if isinstance(write, ForwardWrite):
            self.residual_norm = nn.LayerNorm(size) if write.residual else None
        else:
            self.needs_ids, self.second_order = True, write.mode == "second"
            self.exact_gradient = self.second_order and write.second_order_steps is None
            if write.control_tokens:
                names = ("write_start", "write_end", "read_start", "read_end")
                self.controls = nn.ParameterDict(
                    {name: torch.empty(write.control_tokens, size) for name in names}
                )
            if write.head == "separate":
                self.head = nn.Linear(size, context.vocab_size, bias=False)
                if context.head_weight is not None:
                    self.head.weight = nn.Parameter(context.head_weight.detach().clone())
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Memory and control tokens normal, the projection the identity; the head is left alone."""
        nn.init.normal_(self.tokens, std=self.std)
        if self.projection is not None:
            nn.init.eye_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)
        for control in self.controls.values() if self.controls is not None else ():
            nn.init.normal_(control, std=self.std)

    def init_state(self, batch: int, like: Tensor) -> State:
        """M_0 for every sample; with a projection per sample its weights too."""
        state = {"tokens": self.tokens.to(like.dtype).expand(batch, -1, -1)}
        if self.per_sample:
            assert self.projection is not None
            state["projection_weight"] = self.projection.weight.expand(batch, -1, -1)
            state["projection_bias"] = self.projection.bias.expand(batch, -1)
        return state

    def step(
        self, state: State, x: Tensor, inner: Callable[..., Tensor] | None, segment: Segment
    ) -> tuple[Tensor, State]:
        """Answer from the old memory, then write; x `[B, T, D]`, the result is `[B, T, D]`."""
        stack = cast(Stack, inner)
        if isinstance(self.settings.write, ForwardWrite):
            outputs, new = self._step_forward(state, x, stack, segment, self.settings.write)
        else:
            outputs, new = self._step_gradient(state, x, stack, segment, self.settings.write)
        return outputs, state if segment.frozen else keep_empty_rows(state, new, segment)

    def _step_forward(
        self, state: State, x: Tensor, stack: Stack, segment: Segment, write: ForwardWrite
    ) -> tuple[Tensor, State]:
        memory, n, length = state["tokens"], self.settings.num_tokens, x.shape[1]
        outputs = x
        if segment.frozen or (segment.answers and self.projection is not None):
            outputs = self._run(stack, [memory], x, [], segment)[:, n:]
        if segment.frozen:
            return outputs, state
        for index in range(write.steps):
            fed = memory if self.projection is None else self.projection(memory)
            hidden = self._run(stack, [fed], x, [fed], segment)
            if index == 0 and self.projection is None:
                outputs = hidden[:, n : n + length]
            new = hidden[:, n + length :]
            memory = new if self.residual_norm is None else memory + self.residual_norm(new)
        return outputs, {"tokens": memory}

    def _step_gradient(
        self, state: State, x: Tensor, stack: Stack, segment: Segment, write: GradientWrite
    ) -> tuple[Tensor, State]:
        outputs = x
        if segment.answers or segment.frozen:
            outputs = self._run(stack, self._prefix(state, "read"), x, [], segment)
            outputs = outputs[:, -x.shape[1] :]
        if segment.frozen:
            return outputs, state
        new, loss = gradient_write(
            lambda fast: self.reconstruction_loss(fast, x, stack, segment),
            state,
            steps=write.steps,
            step_size=write.step_size,
            mode=write.mode,
            second_order_steps=write.second_order_steps,
            clip_value=write.clip_value,
            clip_norm=write.clip_norm,
        )
        if loss is None:
            self._run(stack, self._prefix(state, "write"), x, [], segment)
        elif write.loss_weight:
            stack.losses.append(write.loss_weight * loss)
        return outputs, new

    def reconstruction_loss(
        self, state: State, x: Tensor, stack: Stack, segment: Segment
    ) -> Tensor:
        """Mean cross-entropy `[B]` of the segment's tokens, each given what precedes it."""
        if segment.ids is None:
            raise ValueError(
                "a gradient write reconstructs token ids: give input_ids, not embeddings"
            )
        hidden = self._run(stack, self._prefix(state, "write"), x, [], segment)
        hidden = hidden[:, -x.shape[1] - 1 : -1]  # position t - 1 predicts token t
        logits = self.head(hidden) if self.head is not None else stack.logits(hidden)
        losses = F.cross_entropy(logits.mT, segment.ids, reduction="none")
        valid = segment.valid.to(losses.dtype)
        return (losses * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)

    def _prefix(self, state: State, phase: Literal["write", "read"]) -> list[Tensor]:
        memory = state["tokens"]
        if self.per_sample:
            weight, bias = state["projection_weight"], state["projection_bias"]
            memory = torch.baddbmm(bias.unsqueeze(1), memory, weight.mT)
        elif self.projection is not None:
            memory = self.projection(memory)
        if self.controls is None:
            return [memory]
        start, end = (
            self.controls[f"{phase}_{side}"].expand(memory.shape[0], -1, -1)
            for side in ("start", "end")
        )
        return [start, memory, end]

    def _run(
        self, stack: Stack, before: list[Tensor], x: Tensor, after: list[Tensor], segment: Segment
    ) -> Tensor:
        """The stack over [before; x; after]; the segment's pads stay pads."""
        inputs = torch.cat([*before, x, *after], dim=1)
        if segment.full:
            return stack(inputs, None)
        real = segment.valid.any(dim=1, keepdim=True)
        sizes = [sum(part.shape[1] for part in parts) for parts in (before, after)]
        valid = [real.expand(-1, sizes[0]), segment.valid, real.expand(-1, sizes[1])]
        return stack(inputs, torch.cat(valid, dim=1))


memories.preset("rmt", TokenMemory, {"write": {"type": "forward"}}, paper="2207.06881")
memories.preset("gradmem", TokenMemory, {"write": {"type": "gradient"}}, paper="2603.13875")
