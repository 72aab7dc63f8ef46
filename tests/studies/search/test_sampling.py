"""Drawing from a space: every sampler, resumed as if never interrupted; grids; pruning."""

from __future__ import annotations

import math
import statistics
from typing import Any

import optuna
import pytest

from memarch.components.errors import SpecError
from memarch.search_spaces.ranges import Choice, Float, Int, Subset
from memarch.studies.driver.judging import Judge
from memarch.studies.search.domination import Domination
from memarch.studies.search.pruning import Pruning
from memarch.studies.search.sampling import (
    MOST_SUBSETS,
    SAMPLERS,
    Coder,
    Point,
    grid_points,
    make_sampler,
    one_of_each,
    seed_of,
    told_as,
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


@pytest.mark.parametrize(("most", "count"), [(4, 5), (2, 4)])
def test_a_subset_has_one_parameter_a_value(most, count):
    coder = Coder({"": {"layers": Subset((0, 1, 2, 3), 2, most)}})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    _, draws = coder.suggest(trial)
    sizes = set() if most == 2 else {"layers.size"}
    assert trial.params.keys() == {f"layers.{n}" for n in range(4)} | sizes
    assert len(trial.params) == count
    ranks = [trial.params[f"layers.{n}"] for n in range(4)]
    chosen = sorted(range(4), key=lambda n: -ranks[n])[: len(draws["layers"])]
    assert draws["layers"] == sorted(chosen)


def test_a_search_finds_the_layer_that_matters():
    """A planted layer: what is learned about it holds whatever the other layers are."""
    coder = Coder({"": {"layers": Subset(tuple(range(8)), 2, 4)}})
    study = optuna.create_study(direction="maximize")
    scores = []
    for number in range(50):
        study.sampler = make_sampler({"type": "tpe"}, 1, number, 1)
        trial = study.ask()
        layers = coder.suggest(trial)[1]["layers"]
        scores.append((5 in layers) - 0.1 * len(layers))
        study.tell(trial, scores[-1])
    assert max(scores) == pytest.approx(0.8)
    assert sum(score > 0.5 for score in scores[25:]) >= 20  # 3 of 8 by chance


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


MECHANISMS = {
    "none": {},
    "gradmem": {
        "tokens": Choice((2, 4, 8)),
        "steps": Int(1, 5),
        "size": Float(0.05, 5, log=True),
    },
    "armt": {"d_mem": Choice((8, 16, 32)), "heads": Choice((1, 2, 4)), "decay": Float(0, 1)},
    "titans": {"momentum": Float(0, 1), "rate": Float(0, 1)},
}


def loss(variant: str, draws: dict[str, Any]) -> float:
    """Settings of one mechanism act together; `gradmem` is best, when they fit each other."""
    match variant:
        case "gradmem":
            steps = draws["steps"]
            size = (math.log2(draws["tokens"] * steps) - 4) ** 2
            return 0.1 * size + (math.log10(draws["size"] * steps) - 0.3) ** 2
        case "armt":
            size = (math.log2(draws["d_mem"] * draws["heads"]) - 5) ** 2
            return 0.2 + 0.1 * size + (draws["decay"] - 0.3) ** 2
        case "titans":
            return 0.3 + (draws["momentum"] - draws["rate"]) ** 2 + (draws["momentum"] - 0.7) ** 2
    return 1.0


def best_loss(seed: int, **sampler: Any) -> float:
    coder, study = Coder(MECHANISMS), optuna.create_study()
    for number in range(60):
        study.sampler = make_sampler({"type": "tpe"} | sampler, seed, number, 1)
        trial = study.ask()
        study.tell(trial, loss(*coder.suggest(trial)))
    return study.best_value


def test_tpe_models_each_mechanism_by_itself():
    """Settings that only some variants have are drawn jointly: the median over seeds is better."""
    grouped = [best_loss(seed) for seed in range(5)]
    apart = [best_loss(seed, group=False) for seed in range(5)]
    assert statistics.median(grouped) < 0.5 * statistics.median(apart)


@pytest.mark.parametrize(
    ("kind", "settings", "objectives"),
    [
        ("tpe", {}, 1),
        ("tpe", {}, 2),
        ("nsga2", {"population_size": 8}, 2),
        ("gp", {"n_startup_trials": 8}, 1),
    ],
)
def test_samplers_that_learn_keep_away_from_what_is_infeasible(kind, settings, objectives):
    """The better half of the space breaks a constraint; a blind sampler draws there every other
    time."""
    coder = Coder({"": {"x": Float(0, 1), "y": Float(0, 1)}})
    study = optuna.create_study(directions=["maximize"] * objectives)
    judge = Judge({"objective": dict.fromkeys("ab"[:objectives], "maximize")}
                  | {"constraints": {"cost/state_bytes": {"max": 0.5}}})  # fmt: skip
    broken = []
    count = 18 if kind == "gp" else 64
    for number in range(count):
        study.sampler = make_sampler({"type": kind} | settings, 3, number, objectives)
        trial = study.ask()
        _, draws = coder.suggest(trial)
        metrics = {"a": draws["x"] + draws["y"], "b": -draws["y"], "cost/state_bytes": draws["x"]}
        verdict = judge.infeasible(metrics)
        for name, excess in judge.violations(metrics).items():
            trial.set_constraint(name, excess)
        values = [metrics[name] for name in judge.objective]
        told, state = told_as(kind, "infeasible" if verdict else "complete", values)
        study.tell(trial, told, state=state)
        broken.append(verdict is not None)
    late = broken[count // 2 :]
    assert sum(late) <= 0.4 * len(late)


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


def test_domination_needs_several_trials_that_are_as_good_in_everything():
    pruning = Domination(0.5, 2, {"score": "maximize", "bytes": "minimize"})

    def run(number: int, level: float, size: float, variant: str = "rmt") -> float | None:
        for share in (n / 10 for n in range(1, 11)):
            metrics = {"score": level * share} | ({"bytes": size} if share == 0.1 else {})
            if pruning.report(variant, number, share, metrics):
                return share
        return None

    assert run(0, 1.0, 64) is None
    assert run(1, 0.1, 64) is None  # one trial is not enough
    assert run(2, 0.9, 64) is None
    assert run(3, 0.1, 64) == 0.5
    assert run(4, 0.1, 32) is None  # nothing is as small
    assert run(5, 0.1, 64, "armt") is None  # of another kind
    assert run(6, 1.0, 64) is None  # equals are not worse
    assert run(7, 0.1, 99) == 0.5


def test_domination_compares_at_the_same_share_and_knows_all_objectives():
    pruning = Domination(0.5, 1, {"score": "maximize", "bytes": "minimize"})
    pruning.report("rmt", 0, 0.4, {"score": 1.0, "bytes": 1.0})
    assert not pruning.report("rmt", 1, 0.5, {"score": 0.1, "bytes": 1.0})  # 0 is not so far
    pruning.report("rmt", 0, 1.0, {"score": 0.0})
    assert pruning.report("rmt", 1, 0.6, {"score": 0.2})  # 0 had 1.0 by then
    assert not pruning.report("rmt", 2, 0.6, {"score": 0.2})  # its bytes are unknown
    assert not pruning.report("rmt", 1, 0.6, {"score": 0.2})  # again, after a restart
    assert not pruning.report("rmt", 3, 0.6, {"score": 1.5, "bytes": 1.0})
    assert not pruning.report("rmt", 3, 0.7, {"score": 0.1})  # its best so far counts
