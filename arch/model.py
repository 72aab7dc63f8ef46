"""A backbone with memories as a transformers model: forward, write, generate, save and load.

    state = model.write(context_ids)                       # read a context once ...
    answer = model.generate(query_ids, memory=state)       # ... answer many queries from it

An input is cut from the left into segments of `segment_length`; a query after a context opens a new
one. State is explicit: it goes in as `memory`, and comes out of `write`. Masks are 1 for real
tokens. Contexts and inputs are right-padded; prompts of `generate` may be padded on either side.
Shapes: B contexts, R queries a context, W tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ModelOutput

from memarch.arch.attention import NAME
from memarch.arch.backbone import Backbone, empty_backbone
from memarch.arch.cells import Cell, MixerSlot
from memarch.arch.decoding import DecodingCache, decode
from memarch.arch.plan import Plan, choose_schedule
from memarch.arch.run import Run, cut_blocks, cut_whole
from memarch.arch.spec import ModelSpec, parse_model_spec
from memarch.arch.state import MemoryState, RunState
from memarch.arch.work import How
from memarch.components.errors import SpecError
from memarch.components.memory import BuildContext, Every, LayerChoice, Memory, memories


class MemarchConfig(PretrainedConfig):
    """The model's spec (`arch.spec`) and its backbone's own config."""

    model_type = "memarch"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}

    def __init__(
        self,
        spec: Mapping[str, Any] | None = None,
        text_config: PretrainedConfig | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, Mapping):
            text_config = AutoConfig.for_model(**text_config)
        self.spec = dict(spec) if spec is not None else None
        self.text_config = text_config
        if text_config is not None:
            for key in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"):
                kwargs.setdefault(key, getattr(text_config, key, None))
        super().__init__(**kwargs)


@dataclass
class MemarchOutput(ModelOutput):
    """What `forward` returns."""

    loss: Tensor | None = None
    """Mean cross-entropy over the labels, plus `auxiliary_loss`."""
    logits: Tensor | None = None
    """`[B, W, V]`; with labels only at the K scored positions, row by row: `[K, V]`."""
    auxiliary_loss: Tensor | None = None
    """What memories add to the loss (GradMem's reconstruction loss, weighted)."""
    memory: MemoryState | None = None
    """The state after the input, where asked for by `return_memory`."""
    past_key_values: Any = None


class MemarchModel(PreTrainedModel, GenerationMixin):
    """A decoder-only transformer with memories, built from a spec. See the module's docstring."""

    config_class = MemarchConfig
    base_model_prefix = "memarch"
    _supports_sdpa = True
    _supports_flash_attn = True
    accepts_loss_kwargs = True
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True

    def __init__(self, config: MemarchConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if config.spec is None or config.text_config is None:
            raise SpecError("a model needs a spec and the config of its backbone")
        self.spec = parse_model_spec(config.spec, "model")
        self.gradient_checkpointing = False
        self.cuda_graphs = True
        self.backbone = backbone or empty_backbone(config.text_config, self.spec.impl)
        self.backbone.set_attn_implementation(NAME)  # the outer config has none and passed it down
        self.memories = nn.ModuleDict()
        for name, settings in self.spec.memory.items():
            self.memories[name] = _build_memory(settings, self._context())
        _place_mixers(self)
        _check_composition(self)
        _keep_twice_differentiable(self)
        count = max((memory.write_tokens for memory in self.all_memories()), default=0)
        self.write_tokens: nn.Parameter | None = None
        if count:
            width = self.backbone.config.hidden_size
            self.write_tokens = nn.Parameter(torch.empty(count, width).normal_(std=self._std))
        self.post_init()

    # What the model is made of.

    @property
    def view(self) -> Backbone:
        """The backbone's parts."""
        return Backbone(self.backbone)

    @property
    def outer_memories(self) -> dict[str, Memory]:
        """Memories at the segment site by name, the outermost first."""
        return {
            name: memory for name, memory in self.memories.items() if isinstance(memory, Memory)
        }

    def cells(self) -> list[Cell]:
        """Each decoder layer with the memories that act on it."""
        twice = any(memory.second_order for memory in self.outer_memories.values())
        return [
            Cell(
                layer,
                self.layer_memories(index),
                impl=self.spec.impl,
                twice_differentiable=twice,
            )
            for index, layer in enumerate(self.view.layers)
        ]

    def layer_memories(self, layer: int) -> dict[str, Memory]:
        """The memories inside a layer, by name."""
        return {
            name: by_layer[str(layer)]  # type: ignore[misc]
            for name, by_layer in self.memories.items()
            if isinstance(by_layer, nn.ModuleDict) and str(layer) in by_layer
        }

    def all_memories(self) -> list[Memory]:
        """Every memory, at whatever site and layer."""
        return [memory for memory in self.memories.modules() if isinstance(memory, Memory)]

    @property
    def positions(self) -> Literal["segment", "input"]:
        """Whether positions run on through the input or start anew in each segment."""
        kinds = {memory.positions for memory in self.all_memories()}
        return "input" if "input" in kinds else "segment"

    def resolved_schedule(
        self, batch: int = 1, length: int | None = None, truncate: int | None = None
    ) -> Plan:
        """The order of cells for `batch` rows of `length` tokens, and why; gradients as set.

        `auto` measures, once for a batch size (rounded up to a power of two) and machine.
        """
        return choose_schedule(self, batch, length, self._how(truncate))

    def init_memory(self, batch: int) -> MemoryState:
        """The state before anything was written."""
        return self._fresh(batch).pack()

    # What the model does.

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        context_ids: Tensor | None = None,
        context_mask: Tensor | None = None,
        memory: MemoryState | None = None,
        truncate: int | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_memory: bool = False,
        past_key_values: DecodingCache | None = None,
        **_: Any,
    ) -> MemarchOutput:
        """Read `context_ids` `[B, C]`, if given, then `input_ids` `[B * R, W]`, query by query.

        `labels` `[B * R, W]` are those of transformers: shifted inside, -100 is not scored. The
        gradient through the state is cut every `truncate` segments.
        """
        if past_key_values is not None:
            logits = decode(self, input_ids, attention_mask, memory, past_key_values)
            return MemarchOutput(logits=logits, past_key_values=past_key_values)
        with _outside_inference_mode():
            input_ids, valid = _plain(input_ids), _valid(attention_mask)
            run = Run(self, self._how(truncate))
            state = None if memory is None else self._unpack(memory)
            if context_ids is not None:
                state = self._write(run, _plain(context_ids), _valid(context_mask), state)
            state = self._for_rows(state, len(input_ids))
            hidden, state = self._over(
                run, input_ids, valid, state, answers=True, write_last=return_memory
            )
            assert hidden is not None
            output = self._score(hidden, labels, num_items_in_batch, run.losses)
        if return_memory:
            output.memory = state.pack()
        return output

    def write(
        self,
        context_ids: Tensor | Iterable[Tensor],
        attention_mask: Tensor | None = None,
        memory: MemoryState | None = None,
        truncate: int | None = None,
    ) -> MemoryState:
        """The state after reading context_ids `[B, C]`, from `memory` on or from nothing.

        Pieces of a context may be written one after the other where each but the last is a multiple
        of `segment_length` long. An iterable of blocks `[B, any]` is one context of any length: it
        is read without gradients in constant memory, never more of it held than one block and the
        segments that run.
        """
        if isinstance(context_ids, Tensor):
            with _outside_inference_mode():
                run = Run(self, self._how(truncate))
                state = None if memory is None else self._unpack(memory)
                return self._write(run, _plain(context_ids), _valid(attention_mask), state).pack()
        if attention_mask is not None:
            raise ValueError("an input in blocks has no pads: leave attention_mask out")
        with torch.inference_mode(False), torch.no_grad():
            return self._stream(_checked(context_ids), memory).pack()

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: DecodingCache | None = None,
        attention_mask: Tensor | None = None,
        memory: MemoryState | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """transformers' hook: the whole sequence goes to `forward`, the cache knows what is new."""
        if not isinstance(past_key_values, DecodingCache):
            past_key_values = DecodingCache()
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "memory": memory,
            "past_key_values": past_key_values,
        }

    def respec(self, spec: ModelSpec | Mapping[str, Any]) -> MemarchModel:
        """A model of another spec over the same parameters: other write steps, other segments.

        Raises SpecError where the other spec needs other parameters.
        """
        spec = spec if isinstance(spec, ModelSpec) else parse_model_spec(spec, "model")
        shared = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        other = copy.deepcopy(self, shared)
        if spec.backbone != self.spec.backbone or list(spec.memory) != list(self.spec.memory):
            raise SpecError("only settings of the same backbone's same memories may change")
        if spec.impl != self.spec.impl:
            raise SpecError(
                f"it is {self.spec.impl!r} since the model was built and cannot become "
                f"{spec.impl!r}: build a model with that",
                path="model.impl",
            )
        for name, settings in spec.memory.items():
            if settings != self.spec.memory[name]:
                other.memories[name] = _rebuilt(self, name, settings)
        other.spec = spec
        other.config.spec = spec.canonical()
        if max((m.write_tokens for m in other.all_memories()), default=0) != len(
            () if other.write_tokens is None else other.write_tokens
        ):
            raise SpecError("the number of write tokens is a size of parameters: it cannot change")
        return other.train(self.training)

    # How it does it.

    @property
    def _std(self) -> float:
        return float(getattr(self.backbone.config, "initializer_range", 0.02))

    def _context(self) -> BuildContext:
        config = self.backbone.config
        heads = config.num_attention_heads
        return BuildContext(
            hidden_size=config.hidden_size,
            num_heads=heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            num_layers=len(self.view.layers),
            vocab_size=config.vocab_size,
            segment_length=self.spec.segment_length,
            norm_eps=_norm_eps(config),
            initializer_range=self._std,
            head_weight=self.view.head.weight,
            impl=self.spec.impl,
        )

    def _set_gradient_checkpointing(self, enable: bool = True, **_: Any) -> None:
        """transformers' hook: whole cells are computed again, so layers' own flags stay off."""
        self.gradient_checkpointing = enable

    def _init_weights(self, module: nn.Module) -> None:
        """Memories give themselves their initial values; the backbone is its own model's affair."""
        if isinstance(module, Memory):
            module.reset_parameters()
        elif module is self and self.write_tokens is not None:
            nn.init.normal_(self.write_tokens, std=self._std)

    def _fresh(self, batch: int) -> RunState:
        like = self.view.head.weight
        zeros = torch.zeros(batch, dtype=torch.long, device=like.device)
        outer = {name: m.init_state(batch, like) for name, m in self.outer_memories.items()}
        layers = [
            {name: m.init_state(batch, like) for name, m in self.layer_memories(index).items()}
            for index in range(len(self.view.layers))
        ]
        return RunState(outer, layers, zeros, zeros)

    def _unpack(self, memory: MemoryState) -> RunState:
        layers = [list(self.layer_memories(index)) for index in range(len(self.view.layers))]
        return RunState.unpack(memory, list(self.outer_memories), layers)

    def _for_rows(self, state: RunState | None, rows: int) -> RunState:
        """The state for `rows` queries: fresh, or each context's state for its queries."""
        if state is None:
            return self._fresh(rows)
        contexts = len(state.segments)
        if rows == contexts:
            return state
        if rows % contexts:
            raise ValueError(
                f"the number of queries must be a multiple of the number of contexts, got {rows} "
                f"queries over {contexts} contexts"
            )
        return self._unpack(state.pack().repeat(rows // contexts))

    def _how(self, truncate: int | None = None) -> How:
        graphs = self.cuda_graphs and self.device.type == "cuda" and not torch.is_grad_enabled()
        return How(truncate=truncate, checkpoint=self.gradient_checkpointing, graphs=graphs)

    def _over(
        self,
        run: Run,
        ids: Tensor,
        valid: Tensor | None,
        state: RunState,
        *,
        answers: bool,
        write_last: bool,
    ) -> tuple[Tensor | None, RunState]:
        """Run ids `[B, W]`, cut into segments, in the order that suits them."""
        schedule = self.resolved_schedule(len(ids), ids.shape[1], run.how.truncate).schedule
        cuts = cut_whole(ids, valid, self.spec.segment_length)
        return run.over(cuts, state, schedule=schedule, answers=answers, write_last=write_last)

    def _stream(self, blocks: Iterator[Tensor], memory: MemoryState | None) -> RunState:
        first = next(blocks, None)
        if first is None:
            raise ValueError("an input in blocks needs at least one block")
        state = self._for_rows(None if memory is None else self._unpack(memory), len(first))
        cuts = cut_blocks(chain([first], blocks), self.spec.segment_length)
        run = Run(self, self._how())
        schedule = self.resolved_schedule(len(first)).schedule
        return run.over(cuts, state, schedule=schedule, answers=False, write_last=True)[1]

    def _write(
        self, run: Run, ids: Tensor, valid: Tensor | None, state: RunState | None
    ) -> RunState:
        state = self._for_rows(state, len(ids))
        if ids.shape[1] == 0:
            return state
        return self._over(run, ids, valid, state, answers=False, write_last=True)[1]

    def _score(
        self,
        hidden: Tensor,
        labels: Tensor | None,
        num_items: Tensor | int | None,
        losses: list[Tensor],
    ) -> MemarchOutput:
        """Logits where they are wanted and the loss; hidden `[B, W, D]` predicts the next token."""
        auxiliary = torch.stack([loss.mean() for loss in losses]).mean() if losses else None
        if labels is None:
            return MemarchOutput(logits=self.view.head(hidden), auxiliary_loss=auxiliary)
        targets = labels[:, 1:]
        scored = targets != -100
        logits = self.view.head(hidden[:, :-1][scored])  # [K, V]
        loss = F.cross_entropy(logits.to(_wide(logits)), targets[scored], reduction="sum")
        loss = loss / (scored.sum() if num_items is None else num_items)
        loss = loss if auxiliary is None else loss + auxiliary
        return MemarchOutput(loss=loss, logits=logits, auxiliary_loss=auxiliary)


def _build_memory(settings: Any, context: BuildContext) -> nn.Module:
    """A memory at the segment site, or one for each chosen layer."""
    cls = memories[settings.type].cls
    if cls.site == "segment":
        return cls(settings, context)
    layers = chosen_layers(settings.layers, context.num_layers)
    return nn.ModuleDict({str(layer): cls(settings, _at_layer(context, layer)) for layer in layers})


def _at_layer(context: BuildContext, layer: int) -> BuildContext:
    return BuildContext(**(vars(context) | {"layer": layer}))


def chosen_layers(choice: LayerChoice, num_layers: int) -> list[int]:
    """The layers that `layers:` means in a backbone of so many."""
    if choice == "all":
        return list(range(num_layers))
    layers = (
        list(choice)
        if isinstance(choice, list)
        else list(range(choice.offset, num_layers, choice.every))
        if isinstance(choice, Every)
        else []
    )
    wrong = [layer for layer in layers if layer >= num_layers]
    if wrong:
        raise SpecError(f"layers: the backbone has layers 0 to {num_layers - 1}, got {wrong[0]}")
    return sorted(layers)


def _place_mixers(model: MemarchModel) -> None:
    """Put a slot where attention stands in the layers that have mixers."""
    name = model.view.family.attention
    for index, layer in enumerate(model.view.layers):
        mixers = [m for m in model.layer_memories(index).values() if m.site == "mixer"]
        if mixers:
            keep = all(mixer.keeps_attention for mixer in mixers)
            setattr(layer, name, MixerSlot(getattr(layer, name) if keep else None))


def _check_composition(model: MemarchModel) -> None:
    for name, memory in list(model.outer_memories.items())[1:]:
        if memory.needs_ids:
            raise SpecError(
                "reconstructs token ids, so it must be the first memory of whole segments",
                path=f"model.memory.{name}",
            )
    for index in range(len(model.view.layers)):
        here = model.layer_memories(index)
        for site in ("attention", "mixer"):
            exclusive = [
                name
                for name, m in here.items()
                if m.site == site and (site == "attention" or not m.keeps_attention)
            ]
            if len(exclusive) > 1:
                raise SpecError(
                    f"memories {exclusive[0]!r} and {exclusive[1]!r} both stand in for the "
                    f"attention of layer {index}; choose different `layers`",
                    path=f"model.memory.{exclusive[1]}.layers",
                )


def _keep_twice_differentiable(model: MemarchModel) -> None:
    """Under a memory that differentiates through gradients, operations are the reference ones."""
    names = [name for name, memory in model.outer_memories.items() if memory.second_order]
    if not names:
        return
    if model.spec.impl == "triton":
        raise SpecError(
            f"'triton' is impossible: memory {names[0]!r} differentiates through gradients, and "
            "the Triton kernels have no second derivative; use 'auto' or 'reference'",
            path="model.impl",
        )
    for module in model.modules():
        if hasattr(module, "impl"):
            module.impl = "reference"


def _rebuilt(model: MemarchModel, name: str, settings: Any) -> nn.Module:
    """A memory with other settings over the parameters that it has."""
    built = _build_memory(settings, model._context())
    try:
        built.load_state_dict(model.memories[name].state_dict(keep_vars=True), assign=True)
    except RuntimeError:
        raise SpecError(
            "these settings need parameters of other sizes than the model has",
            path=f"model.memory.{name}",
        ) from None
    return built


def _norm_eps(config: PretrainedConfig) -> float:
    names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
    return next((float(getattr(config, n)) for n in names if hasattr(config, n)), 1e-6)


def _valid(mask: Tensor | None) -> Tensor | None:
    if mask is None or bool(mask.all()):
        return None
    valid = _plain(mask).bool()
    if bool((valid[:, 1:] & ~valid[:, :-1]).any()):
        raise ValueError("pads must stand at the end of each row; generate takes either side")
    return valid


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _plain(x: Tensor) -> Tensor:
    """A tensor that autograd may save, also where x was made in inference mode."""
    return x.clone() if x.is_inference() else x


def _checked(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Blocks as they come; a ValueError for one that is no `[B, any]` of token ids."""
    rows = None
    for index, block in enumerate(blocks):
        if not isinstance(block, Tensor) or block.ndim != 2 or block.is_floating_point():
            found = (
                f"{block.dtype} {list(block.shape)}" if isinstance(block, Tensor) else type(block)
            )
            raise ValueError(f"block {index} must be a tensor of token ids [B, any], got {found}")
        if rows not in (None, len(block)):
            raise ValueError(f"block {index} has {len(block)} rows, those before it have {rows}")
        rows = len(block)
        yield _plain(block)


@contextmanager
def _outside_inference_mode() -> Any:
    """Gradient writers need autograd; inference mode would forbid it even inside `enable_grad`."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


AutoConfig.register(MemarchConfig.model_type, MemarchConfig)
AutoModelForCausalLM.register(MemarchConfig, MemarchModel)
