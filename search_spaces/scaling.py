"""Rules by which a model grows: what of a spec changes when it becomes wider or deeper.

    width            heads, hidden size, MLP and sizes of memories in proportion; a head's size and
                     the number of query heads to a key-value head stay
    depth            layers; a list of layers with memory is spread over the deeper model
    width_and_depth  both, so that hidden size : layers stays

With w the factor of the width, the learning rate becomes lr / w (`lr: 1/width`), lr / sqrt(w)
(`1/sqrt(width)`), or stays (`keep`). What `keep` names stays in any case. Sizes of memories that
grow with the width are those that the memory's class names (`Memory.scales_with_width`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memarch.arch.backbone_keys import config_keys
from memarch.arch.settings import parse
from memarch.arch.spec import BackboneSpec
from memarch.components.errors import SpecError, did_you_mean
from memarch.components.memory import memories

Json = Mapping[str, Any]
RATES: Mapping[str, Callable[[float], float]] = {
    "keep": lambda w: 1.0,
    "1/width": lambda w: 1 / w,
    "1/sqrt(width)": lambda w: 1 / math.sqrt(w),
}


@dataclass(frozen=True)
class Rule:
    """A family of larger models: what changes at each step of its size."""

    name: str
    change: Callable[[int], dict[str, Any]]
    keep: Sequence[str]

    def steps(self, most: int) -> list[int]:
        return list(range(1, most + 1))

    def values(self, step: int) -> dict[str, Any]:
        """Key paths to values."""
        return {path: v for path, v in self.change(step).items() if path not in self.keep}


def make_rule(settings: Json, spec: Json, raw: Json) -> Rule:
    """The rule over a checked spec; `raw` has its keys as they were written."""
    backbone = parse(BackboneSpec, spec["model"]["backbone"])
    if backbone.type is None:
        raise SpecError("a pretrained backbone has its size; scale one of random weights")
    if spec["train"].get("init_from"):
        raise SpecError(
            "training starts from weights of the smaller model (train.init_from), which the "
            "larger one cannot take: set it to null"
        )
    sizes = _Sizes(backbone, spec, raw)
    rate = RATES[settings["lr"]]

    def change(step: int) -> dict[str, Any]:
        width, depth = sizes.factors(settings["rule"], step)
        changed = sizes.wider(width) if settings["rule"] != "depth" else {}
        if settings["rule"] != "width":
            changed |= sizes.deeper(depth)
        if settings["rule"] != "depth" and settings["lr"] != "keep":
            changed |= _rates(spec["train"]["lr"], rate(width))
        return changed

    known = list(change(1))
    for index, path in enumerate(settings["keep"]):
        if path not in known:
            raise SpecError(
                f"the rule {settings['rule']!r} does not change {path!r}, so there is nothing to "
                f"keep; {did_you_mean(path, known)}",
                path=f"keep.{index}",
            )
    return Rule(settings["rule"], change, tuple(settings["keep"]))


@dataclass(frozen=True)
class _Sizes:
    """The sizes of the smaller model, under the names that the file gives them."""

    backbone: BackboneSpec
    spec: Json
    raw: Json

    def factors(self, rule: str, step: int) -> tuple[float, int]:
        """How many times as wide, and how many layers, at this step of the rule's smallest unit."""
        layers = self._size("num_hidden_layers")
        if rule == "depth":
            return 1.0, step
        heads, groups = self._size("num_attention_heads"), self._groups()
        unit = heads // math.gcd(heads, groups) if groups else 1
        width = step * unit / heads
        return width, max(1, round(layers * width))

    def wider(self, width: float) -> dict[str, Any]:
        changed = {
            self._path(name): round(self._size(name) * width)
            for name in ("hidden_size", "num_attention_heads")
        }
        for name in ("num_key_value_heads", "intermediate_size"):
            given = self._given(name)
            if given is not None:
                changed[self._path(name)] = max(1, round(given * width))
        for name, settings in self.spec["model"]["memory"].items():
            for key in memories[settings["type"]].cls.scales_with_width:
                if isinstance(settings.get(key), int):
                    changed[self._memory(name, key)] = max(1, round(settings[key] * width))
        return changed

    def deeper(self, layers: int) -> dict[str, Any]:
        changed: dict[str, Any] = {self._path("num_hidden_layers"): layers}
        before = self._size("num_hidden_layers")
        for name, settings in self.spec["model"]["memory"].items():
            if isinstance(settings.get("layers"), list):
                spread = [round(i * (layers - 1) / max(1, before - 1)) for i in settings["layers"]]
                changed[self._memory(name, "layers")] = list(dict.fromkeys(spread))
        return changed

    def _groups(self) -> int | None:
        """Key-value heads, where they are fewer than query heads."""
        return self._given("num_key_value_heads")

    def _given(self, name: str) -> Any:
        keys = config_keys(self.backbone.type or "")
        value = self.backbone.config.get(keys.real_name(name))
        return value if isinstance(value, int) else None

    def _size(self, name: str) -> int:
        value = self.backbone.value(name)
        if not isinstance(value, int):
            raise SpecError(f"the backbone has no {name} to scale")
        return value

    def _path(self, name: str) -> str:
        """The key as the file writes it: `hidden_size`, or a model's own `n_embd`."""
        keys = config_keys(self.backbone.type or "")
        real = keys.real_name(name)
        written = self.raw["model"]["backbone"]
        found = next((key for key in written if keys.real_name(key) == real), real)
        return f"model.backbone.{found}"

    def _memory(self, name: str, key: str) -> str:
        """A memory's key, which stands inside `store` where the memory is written by its axes."""
        written = self.raw["model"]["memory"][name]
        inside = "store." if "store" in written and key not in written else ""
        return f"model.memory.{name}.{inside}{key}"


def _rates(lr: Any, factor: float) -> dict[str, Any]:
    if isinstance(lr, Mapping):
        return {f"train.lr.{part}": rate * factor for part, rate in lr.items()}
    return {"train.lr": lr * factor}
