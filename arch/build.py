"""From a spec to a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from memarch.arch.backbone import pretrained_backbone, pretrained_config, random_config
from memarch.arch.model import MemarchConfig, MemarchModel
from memarch.arch.spec import ModelSpec, parse_model_spec


def build_model(
    spec: ModelSpec | Mapping[str, Any], *, vocab_size: int | None = None, seed: int | None = None
) -> MemarchModel:
    """The model that a spec describes, with weights random from `seed` or pretrained.

    `vocab_size` is for random backbones whose spec has none: the task's. The caller's random state
    is left alone where a seed is given. Raises SpecError.
    """
    spec = spec if isinstance(spec, ModelSpec) else parse_model_spec(spec, "model")
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if spec.backbone.pretrained is not None:
            backbone = pretrained_backbone(spec.backbone, spec.impl)
            config = MemarchConfig(spec=spec.canonical(), text_config=backbone.config)
            return MemarchModel(config, backbone)
        text_config = random_config(
            spec.backbone, vocab_size=vocab_size, length=spec.segment_length + _extra_tokens(spec)
        )
        return MemarchModel(MemarchConfig(spec=spec.canonical(), text_config=text_config))


def unfilled_model(spec: ModelSpec, *, vocab_size: int | None = None) -> MemarchModel:
    """The same model with weights that mean nothing, for a device where they are shapes only.

    Nothing is loaded: of a pretrained backbone only its config.json is read.
    """
    if spec.backbone.pretrained is not None:
        config = pretrained_config(spec.backbone)
    else:
        length = spec.segment_length + _extra_tokens(spec)
        config = random_config(spec.backbone, vocab_size=vocab_size, length=length)
    return MemarchModel(MemarchConfig(spec=spec.canonical(), text_config=config))


def _extra_tokens(spec: ModelSpec) -> int:
    """A bound on the tokens that memories add to one pass: around the segment and in its prefix."""
    counts = [getattr(settings, "num_tokens", 0) for settings in spec.memory.values()]
    controls = [
        getattr(getattr(settings, "write", None), "control_tokens", 0)
        for settings in spec.memory.values()
    ]
    return 2 * sum(counts) + 2 * sum(controls)
