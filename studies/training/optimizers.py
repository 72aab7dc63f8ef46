"""Which parameters train, at which rate: groups for memory and backbone, LoRA, AdamW.

Memory parameters are those under `model.memories` and `model.write_tokens`, all others backbone.
Weight decay spares norms, biases and everything else with fewer than two dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from memarch.components.errors import SpecError

Part = Literal["memory", "backbone"]


def part_of(name: str) -> Part:
    """`memory` or `backbone`, by a parameter's name in the model."""
    return "memory" if name.split(".")[0] in ("memories", "write_tokens") else "backbone"


def set_trainable(model: nn.Module, mode: str) -> None:
    """Set `requires_grad`: memory, lora (memory and adapters) or all.

    Raises `SpecError` when nothing would train.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(
            mode == "all" or part_of(name) == "memory" or (mode == "lora" and _is_adapter(name))
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SpecError(
            f"trainable: {mode} trains nothing, for the model has no memory with parameters; "
            "use trainable: all",
            path="train.trainable",
        )


def add_lora(backbone: nn.Module, settings: Mapping[str, Any]) -> None:
    """Put adapters beside the backbone's linear layers, in place: W x + (alpha / rank) B A x."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = settings["targets"]
    config = LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=targets if targets is not None else _linear_names(backbone),
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in backbone.modules()),
    )
    try:
        inject_adapter_in_model(config, backbone)
    except ValueError as error:
        raise SpecError(str(error).splitlines()[0], path="train.lora.targets") from None


def merge_lora(backbone: nn.Module) -> None:
    """Fold every adapter into the weight that it stands beside, and take it out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapters = [n for n, module in backbone.named_modules() if isinstance(module, BaseTunerLayer)]
    for name in adapters:
        layer: Any = backbone.get_submodule(name)
        layer.merge()
        backbone.set_submodule(name, layer.get_base_layer())


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: part by part, with and without decay; each carries its `part` by name.

    Frozen parameters are among them, since a later stage may train them: without a gradient AdamW
    leaves them alone.
    """
    norms = {
        id(parameter)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }
    groups: dict[tuple[Part, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim >= 2 and id(parameter) not in norms
        groups.setdefault((part_of(name), decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "part": part,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
    ]


def rate_of(learning_rate: Any, part: str) -> float:
    """The base rate of a part: `lr` is one number, or settings with one for each part."""
    return float(getattr(learning_rate, part, learning_rate))


def adamw(groups: Iterable[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW in one fused call a group, a fifth of the loop's time on small models.

    The schedule sets the rates before the first step.
    """
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _linear_names(backbone: nn.Module) -> list[str]:
    """Names of the linear layers inside the decoder layers, the head excluded."""
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }
    return sorted(names - {"lm_head", "embed_out"})
