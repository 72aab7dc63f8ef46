"""Drawing from a space: every sampler, resumed as if never interrupted; grids; pruning."""

from __future__ import annotations

import optuna
import pytest

from memarch.components.errors import SpecError
from memarch.search_spaces.ranges import Choice, Float, Int, Subset
from memarch.studies.pruning import Pruning
from memarch.studies.sampling import (
    MOST_SUBSETS,
    SAMPLERS,
    Coder,
    Point,
    grid_points,
    make_sampler,
    one_of_each,
    seed_of,
    with_seeds,
)

SPACES = {
    "none": {"lr": Float(1e-4, 1e-1, log=True)},
    "rmt": {"lr": Float(1e-4, 1e-1, log=True), "num_tokens": Choice((2, 4, 8))},
    "armt": {"lr": Float(1e-4, 1e-1, log=True), "layers": Subset((0, 1, 2), 1, 2)},
}


def draw(
    storage: optuna.storages.BaseStorage, kind: str, count: int, objectives: int = 1
) -> list[Point]:
    """Draw trials up to `count` in all, each told a score, and give all of them."""
    coder = Coder(SPACES)
    directions = ["maximize"] * objectives
    study = optuna.create_study(
        study_name="s", storage=storage, directions=directions, load_if_exists=True
    )
    while (number := len(study.trials)) < count:
        study.sampler = make_sampler({"type": kind}, 7, number, objectives)
        trial = study.ask()
        variant, draws = coder.suggest(trial)
        scores = [-((draws["lr"] - 0.01) ** 2), float(len(variant))]
        study.tell(trial, scores[:objectives])
    return [Point(t.params["variant"], t.params) for t in study.trials]


@pytest.mark.parametrize("kind", sorted(set(SAMPLERS) - {"grid"}))
def test_a_study_cut_off_and_resumed_draws_what_an_uninterrupted_one_would(kind):
    whole = draw(optuna.storages.InMemoryStorage(), kind, 16)
    parts = optuna.storages.InMemoryStorage()
    draw(parts, kind, 11)
    resumed = draw(parts, kind, 16)
    assert resumed == whole
    assert len({str(point) for point in whole}) > 10
    assert len({point.variant for point in whole}) > 1


def test_seeds_differ_by_study_and_by_trial():
    assert len({seed_of(1, 0), seed_of(1, 1), seed_of(2, 0)}) == 3
    assert seed_of(1, 0) == seed_of(1, 0)


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "gp", "qmc", "random"])
def test_several_objectives(kind):
    assert len(draw(optuna.storages.InMemoryStorage(), kind, 13, objectives=2)) == 13


def test_cmaes_takes_one_objective():
    with pytest.raises(SpecError, match="one objective"):
        make_sampler({"type": "cmaes"}, 0, 0, 2)


def test_an_unknown_sampler_is_an_error_that_names_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'random'"):
        make_sampler({"type": "randm"}, 0, 0, 1)


def test_a_point_comes_back_as_it_was_encoded():
    spaces = {
        "a": {
            "scalar": Choice((1, 2)),
            "mixed": Choice((1, True, "1")),
            "lists": Choice(([1], [1, 2])),
            "few": Subset(("x", "y"), 0, 2),
            "many": Subset(tuple(range(12)), 1, 6),
            "real": Float(0, 1),
            "whole": Int(1, 9, step=2),
        },
        "b": {"scalar": Choice((3, 4)), "real": Float(0, 1)},
    }
    coder = Coder(spaces)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for point in (
        Point("b", {"scalar": 4, "real": 0.5}),
        Point(
            "a",
            {
                "scalar": 2,
                "mixed": True,
                "lists": [1, 2],
                "few": [],
                "many": [0, 5, 11],
                "real": 0.25,
                "whole": 7,
            },
        ),
    ):
        study.enqueue_trial(coder.encode(point))
        variant, draws = coder.suggest(study.ask())
        assert (variant, draws) == (point.variant, point.draws)
        assert type(draws.get("mixed", True)) is bool


def test_large_subsets_are_drawn_in_their_order_and_size():
    range_ = Subset(tuple("abcdefghijkl"), 2, 4)
    assert len(range_.grid()) > MOST_SUBSETS
    coder = Coder({"": {"layers": range_}})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        _, draws = coder.suggest(study.ask())
        assert range_.contains(draws["layers"])


def test_variants_that_give_one_name_different_ranges_do_not_collide():
    coder = Coder({"a": {"n": Choice((1, 2))}, "b": {"n": Choice((3,))}, "c": {"m": Int(1, 2)}})
    assert coder.encode(Point("b", {"n": 3})) == {"variant": "b", "b.n": 3}
    assert coder.encode(Point("c", {"m": 1})) == {"variant": "c", "m": 1}


def test_a_grid_crosses_variants_with_all_their_values():
    points = grid_points({"a": {"x": Choice((1, 2)), "y": Int(1, 3)}, "b": {}})
    assert [(p.variant, p.draws) for p in points] == [
        *[("a", {"x": x, "y": y}) for x in (1, 2) for y in (1, 2, 3)],
        ("b", {}),
    ]
    shuffled = grid_points({"a": {"x": Choice((1, 2)), "y": Int(1, 3)}}, shuffle=3)
    assert sorted(map(str, shuffled)) == sorted(map(str, points[:6]))
    assert shuffled != points[:6]


@pytest.mark.parametrize("range_", [Float(0, 1), Int(1, 10**9), Subset(tuple(range(40)), 1, 20)])
def test_a_grid_over_infinitely_many_values_is_an_error(range_):
    with pytest.raises(SpecError, match="finitely many values") as error:
        grid_points({"": {"lr": range_}})
    assert error.value.path == "lr"


def test_one_of_each_gives_what_variants_share_one_value():
    points = one_of_each(SPACES, seed=3)
    assert [point.variant for point in points] == list(SPACES)
    assert len({point.draws["lr"] for point in points}) == 1
    assert points == one_of_each(SPACES, seed=3) != one_of_each(SPACES, seed=4)


def test_replicates_run_each_point_once_per_seed():
    points = list(with_seeds([Point("a", {}), Point("b", {})], [1, 2]))
    assert [(p.variant, p.seed) for p in points] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


# Pruning


def curve(pruning: Pruning, number: int, level: float, variant: str = "rmt") -> float | None:
    """Report level * share at ten points; the share at which the trial is stopped, if it is."""
    for share in (n / 10 for n in range(1, 11)):
        if pruning.report(variant, number, share, {"score": level * share}):
            pruning.finish(number, pruned=True)
            return share
    pruning.finish(number, pruned=False)
    return None


@pytest.mark.parametrize("kind", ["median", "halving", "hyperband"])
def test_a_bad_trial_stops_but_not_before_its_time(kind):
    pruning = Pruning({"type": kind, "on": "score", "after": 0.5}, "maximize")
    good = [curve(pruning, number, 1 + 0.01 * number) for number in range(8)]
    assert good[:1] == [None]
    stopped = curve(pruning, 8, 0.1)
    assert stopped is not None
    assert 0.5 <= stopped < 1


def test_a_variant_is_compared_with_its_own_kind_alone():
    pruning = Pruning({"type": "median", "on": "score"}, "maximize")
    for number in range(6):
        curve(pruning, number, 1.0, "deltanet")
    assert curve(pruning, 6, 0.1, "armt") is None
    assert curve(pruning, 7, 0.1, "deltanet") is not None


def test_a_metric_that_is_to_fall_is_pruned_from_above():
    pruning = Pruning({"type": "median", "on": "score"}, "minimize")
    for number in range(6):
        curve(pruning, number, 1.0)
    assert curve(pruning, 6, 9.0) is not None


def test_pruners_learn_a_resumed_study_from_its_reports():
    """The same reports again, as after a restart, change nothing; new trials see them."""
    pruning = Pruning({"type": "median", "on": "score"}, "maximize")
    for number in range(6):
        for share in (0.5, 0.5, 1.0):
            assert not pruning.report("rmt", number, share, {"score": 1.0})
        pruning.finish(number, pruned=False)
    assert pruning.report("rmt", 6, 0.5, {"score": 0.1})


@pytest.mark.parametrize("metrics", [{}, {"score": None}, {"score": float("nan")}])
def test_a_report_without_the_metric_decides_nothing(metrics):
    pruning = Pruning({"type": "median", "on": "score"}, "maximize")
    assert not pruning.report("rmt", 0, 0.9, metrics)


def test_without_a_pruner_nothing_stops():
    pruning = Pruning({"type": "none", "on": "score"}, "maximize")
    assert [curve(pruning, n, 1 - n / 10) for n in range(9)] == [None] * 9
