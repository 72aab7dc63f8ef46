"""Backbones: transformers' decoder-only models, seen through the parts that memarch runs itself.

The layers stay transformers' own, except that their attention is ours and that RMS norms
compute in the larger of float32 and the input's type (transformers rounds to float32).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from memarch.arch.attention import NAME
from memarch.arch.families import family_of
from memarch.arch.spec import BackboneSpec
from memarch.components.errors import SpecError
from memarch.components.leaves import RMSNorm
from memarch.kernels.checks import Impl

RMS_NORMS = {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}


class Backbone:
    """A view of a causal language model: embedding, layers, final norm, head, positions."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.family = family_of(model.config.model_type)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return self._part(self.family.layers)  # type: ignore[return-value]

    @property
    def head(self) -> nn.Linear:
        """Hidden states to logits."""
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        return head

    @property
    def embedding(self) -> nn.Embedding:
        """Token ids to embeddings."""
        return self._part(self.family.embedding)  # type: ignore[return-value]

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids `[B, T]` to embeddings `[B, T, D]`, without positions."""
        return self.embedding(ids)

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        """Embeddings and positions `[1 or B, T]` to the first layer's input."""
        if self.family.absolute is not None:
            x = x + self._part(self.family.absolute)(positions)
        return x if self.family.dropout is None else self._part(self.family.dropout)(x)

    def rope(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """cos, sin `[1 or B, T, d]` of these positions in x's type, if queries are rotated."""
        if self.family.rotary is None:
            return None
        cos, sin = self._part(self.family.rotary)(x, positions)
        return cos, sin

    def leave(self, x: Tensor) -> Tensor:
        """The final norm."""
        return self._part(self.family.norm)(x)

    def _part(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)


def random_config(spec: BackboneSpec, *, vocab_size: int | None, length: int) -> PretrainedConfig:
    """The config of a randomly initialised backbone, with sizes that follow from those given.

    `length` is the longest input of one pass. Absent sizes: MLP 4 * hidden, as many key-value heads
    as heads, head size hidden / heads, no special tokens, no cache.
    """
    given = dict(spec.config)
    family_of(spec.type or "")
    if "vocab_size" not in given and vocab_size is None:
        raise SpecError(
            "vocab_size is not given and there is no task to take it from", path="model.backbone"
        )
    given = _NO_SPECIAL_TOKENS | {"vocab_size": vocab_size} | given
    config = AutoConfig.for_model(spec.type, **given)
    sizes = {
        "intermediate_size": 4 * config.hidden_size,
        "num_key_value_heads": config.num_attention_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "max_position_embeddings": max(2048, length),
    }
    follow = {key: value for key, value in sizes.items() if hasattr(config, key)}
    return AutoConfig.for_model(spec.type, **(follow | given))


_NO_SPECIAL_TOKENS: dict[str, Any] = {
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "use_cache": False,
}


def empty_backbone(config: PretrainedConfig, impl: Impl = "auto") -> PreTrainedModel:
    """A randomly initialised backbone with our attention and norms."""
    family_of(config.model_type)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=NAME)
    return _with_our_norms(model, impl)


def pretrained_backbone(spec: BackboneSpec, impl: Impl = "auto") -> PreTrainedModel:
    """A backbone from a folder or a hub name, with `keep_layers` of its layers."""
    config = AutoConfig.from_pretrained(spec.pretrained, revision=spec.revision)
    family_of(config.model_type)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        spec.pretrained, revision=spec.revision, attn_implementation=NAME, dtype=torch.float32
    )
    if spec.keep_layers is not None:
        _keep_layers(model, spec.keep_layers)
    return _with_our_norms(model, impl)


def pretrained_config(spec: BackboneSpec) -> PretrainedConfig:
    """The config that such a backbone has, without its weights."""
    config = AutoConfig.from_pretrained(spec.pretrained, revision=spec.revision)
    family_of(config.model_type)
    if spec.keep_layers is not None:
        _shorten(config, spec.keep_layers)
    return config


def _keep_layers(model: PreTrainedModel, keep: list[int]) -> None:
    family, config = family_of(model.config.model_type), model.config
    parent, _, name = family.layers.rpartition(".")
    layers = model.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    wrong = [index for index in keep if not 0 <= index < len(layers)]
    if wrong:
        raise SpecError(
            f"keep_layers names layer {wrong[0]}, but the model has layers 0 to {len(layers) - 1}",
            path="model.backbone.keep_layers",
        )
    setattr(model.get_submodule(parent), name, nn.ModuleList(layers[index] for index in keep))
    _shorten(config, keep)


def _shorten(config: PretrainedConfig, keep: list[int]) -> None:
    config.num_hidden_layers = len(keep)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in keep]


def _with_our_norms(model: PreTrainedModel, impl: Impl) -> PreTrainedModel:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ in RMS_NORMS:
                weight = child.weight
                assert isinstance(weight, nn.Parameter)
                norm = RMSNorm(weight.shape[0], eps=float(child.variance_epsilon), impl=impl)
                norm.weight = weight
                setattr(parent, name, norm)
    return model
