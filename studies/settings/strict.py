"""What all settings of a study file are: immutable, and without keys that nobody knows."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, model_serializer
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from memarch.components.strict import Strict as _Strict


class Strict(_Strict):
    """Immutable, unknown keys refused; the line under a field is its description."""

    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)


class Given(Strict):
    """Settings that are handed on to a library: only those that are given appear."""

    @model_serializer(mode="wrap")
    def _only_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}
