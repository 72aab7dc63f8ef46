"""The values that are computed: `=hidden_size // 8`. Arithmetic on numbers and nothing else."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

from memarch.arch.settings import show
from memarch.components.errors import SpecError

Number = int | float

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max}
_DOLLAR = re.compile(r"(?<![\w$])\$(?=[A-Za-z_])")
ALLOWED = "+ - * / // min max, numbers and names"


def evaluate(text: str, lookup: Callable[[str], Any]) -> Number:
    """The value of an expression, without its leading `=`; `lookup` gives the value of a name.

    `$name` means the same as `name`.
    """
    try:
        tree = ast.parse(_DOLLAR.sub("", text).strip(), mode="eval")
    except (SyntaxError, ValueError):
        raise SpecError(f"{'=' + text!r} is no expression; there are {ALLOWED}") from None
    try:
        return _number(tree.body, lookup)
    except ZeroDivisionError:
        raise SpecError(f"{'=' + text!r} divides by zero") from None


def _number(node: ast.expr, lookup: Callable[[str], Any]) -> Number:
    if isinstance(node, ast.Constant):
        return _checked(node.value, repr(node.value))
    if isinstance(node, ast.Name):
        return _checked(lookup(node.id), node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _number(node.operand, lookup)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _number(node.left, lookup), _number(node.right, lookup)
        return _whole(_BINARY[type(node.op)](left, right), node.op)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = _FUNCTIONS.get(node.func.id)
        if function is not None and node.args:
            return function(*(_number(argument, lookup) for argument in node.args))
    raise SpecError(f"{ast.unparse(node)!r} cannot stand in an expression; there are {ALLOWED}")


def _whole(value: Number, op: ast.operator) -> Number:
    """`/` gives an integer where it divides evenly, for most values here are sizes."""
    exact = isinstance(op, ast.Div) and isinstance(value, float) and value.is_integer()
    return int(value) if exact else value


def _checked(value: Any, name: str) -> Number:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpecError(f"{name} is no number, but {show(value)}")
    return value
