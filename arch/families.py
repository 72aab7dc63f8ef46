"""Families of decoder-only models, by transformers' `model_type`: where each keeps its parts.

Adding a family is a line here. Nothing is imported, so that specs are checked quickly.
"""

from __future__ import annotations

from dataclasses import dataclass

from memarch.components.errors import SpecError, did_you_mean


@dataclass(frozen=True)
class Family:
    """Attribute paths from the causal language model."""

    embedding: str
    layers: str
    norm: str
    attention: str
    """Name of the attention inside a layer."""
    rotary: str | None = None
    absolute: str | None = None
    dropout: str | None = None


_LLAMA = Family(
    "model.embed_tokens", "model.layers", "model.norm", "self_attn", rotary="model.rotary_emb"
)
FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt_neox": Family(
        "gpt_neox.embed_in",
        "gpt_neox.layers",
        "gpt_neox.final_layer_norm",
        "attention",
        rotary="gpt_neox.rotary_emb",
        dropout="gpt_neox.emb_dropout",
    ),
    "gpt2": Family(
        "transformer.wte",
        "transformer.h",
        "transformer.ln_f",
        "attn",
        absolute="transformer.wpe",
        dropout="transformer.drop",
    ),
}


def family_of(model_type: str, path: str = "model.backbone.type") -> Family:
    """The family of a config's `model_type`. Raises SpecError for one that is not supported."""
    if model_type not in FAMILIES:
        raise SpecError(
            f"backbone type {model_type!r} is not supported; {did_you_mean(model_type, FAMILIES)}",
            path=path,
        )
    return FAMILIES[model_type]
