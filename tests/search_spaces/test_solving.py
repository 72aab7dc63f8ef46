"""The solver of sizes: nearest of all, few costs looked at, ties as they are stated."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

import pytest

from memarch.components.errors import SpecError
from memarch.search_spaces.solving import nearest


class Counted:
    """A cost that counts how often it is asked for."""

    def __init__(self, formula: Any) -> None:
        self.formula, self.asked = formula, 0

    def __call__(self, values: Mapping[str, Any]) -> float | None:
        self.asked += 1
        found = self.formula(**values)
        return None if found is None else float(found)


def test_one_range_is_bisected() -> None:
    cost = Counted(lambda n: 128 * n)
    found = nearest({"n": range(1, 513)}, cost, 1000)
    assert found is not None
    assert (found.best.values, found.best.cost) == ({"n": 8}, 1024)
    assert found.below is not None
    assert found.above is not None
    assert (found.below.values, found.above.values) == ({"n": 7}, {"n": 8})
    assert cost.asked <= 12


def test_the_result_is_the_nearest_of_all() -> None:
    random.seed(3)
    for _ in range(40):
        a, b, c = (random.randint(0, 9) for _ in range(3))
        cost = Counted(lambda x, y, a=a, b=b, c=c: a * x * y + b * x + c)
        ranges = {"x": range(1, 30), "y": range(1, 6)}
        target = random.randint(1, 1500)
        found = nearest(ranges, cost, target)
        every = [cost({"x": x, "y": y}) for x, y in itertools.product(*ranges.values())]
        assert found is not None
        assert abs(found.best.cost - target) == min(abs(one - target) for one in every)
        below = [one for one in every if one <= target]
        assert (found.below.cost if found.below else None) == max(below, default=None)


def test_of_equally_near_ones_the_least_changed_wins() -> None:
    cost = Counted(lambda heads, size: heads * size)
    found = nearest({"heads": range(1, 9), "size": range(4, 37)}, cost, 32)
    assert found is not None
    # 8 x 4: 1 + 0 of their ranges; 4 x 8: 3/7 + 4/32; 2 x 16: 1/7 + 12/32; 1 x 32: 0 + 28/32.
    assert found.best.values == {"heads": 2, "size": 16}
    idle = nearest({"n": range(1, 20), "idle": range(5, 50)}, lambda v: float(v["n"]), 7)
    assert idle is not None
    assert idle.best.values == {"n": 7, "idle": 5}


def test_a_falling_cost_and_a_flat_one() -> None:
    found = nearest({"n": range(1, 100)}, lambda v: 1000.0 / v["n"], 100)
    assert found is not None
    assert found.best.values == {"n": 10}
    flat = nearest({"n": range(1, 100)}, lambda v: 5.0, 100)
    assert flat is not None
    assert (flat.best.values, flat.above) == ({"n": 1}, None)


def test_values_without_a_model_are_passed_over() -> None:
    cost = Counted(lambda n: None if n % 4 else 10 * n)
    found = nearest({"n": range(1, 101)}, cost, 333)
    assert found is not None
    assert found.best.values == {"n": 32}
    assert nearest({"n": range(1, 50)}, lambda v: None, 3) is None


def test_a_cost_that_goes_up_and_down_is_looked_at_everywhere() -> None:
    found = nearest({"n": range(64)}, lambda v: float((v["n"] * 7) % 64), 63)
    assert found is not None
    assert found.best.cost == 63


def test_values_of_any_kind() -> None:
    maps = {"dpfp1": 2, "dpfp2": 4, "dpfp3": 6}
    found = nearest(
        {"d": [2, 4, 8], "map": list(maps)}, lambda v: float(v["d"] * maps[v["map"]]), 24
    )
    assert found is not None
    assert found.best.values == {"d": 4, "map": "dpfp3"}


def test_too_many_combinations_are_refused() -> None:
    with pytest.raises(SpecError, match="more than 2048 combinations"):
        nearest({"a": range(100), "b": range(100), "c": range(100)}, lambda v: 1.0, 5)
    with pytest.raises(SpecError, match="neither only rises nor only falls"):
        nearest({"a": range(5000)}, lambda v: float(v["a"] * 7 % 5000), 5)
