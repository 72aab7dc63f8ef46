"""Training: every setting does what it says, and a run that was cut off goes on bit for bit."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_spec import make_spec

from memarch.arch.build import build_model
from memarch.arch.model import MemarchModel
from memarch.components.errors import SpecError
from memarch.studies.tasks.base import build_task
from memarch.studies.training import optimizers, training
from memarch.studies.training.budget import Budget, Spent
from memarch.studies.training.session import NotFiniteError, Session
from memarch.studies.training.stages import stage_specs
from memarch.studies.training.trainer import SessionTrainer
from memarch.studies.training.training import has_converged, train

RMT = {"main": {"type": "rmt", "num_tokens": 2}}
DELTANET = {"main": {"type": "deltanet", "heads": 2}}


pytestmark = pytest.mark.usefixtures("one_thread")


def ignore(step: int, metrics: dict[str, float]) -> bool:
    return False


class KilledError(Exception):
    """What stands for a killed process."""


def kill_at(step: int) -> Callable[[Session], bool]:
    """An `after_step` that dies when the step is done, its checkpoint included."""
    original = Session.after_step

    def after_step(self: Session) -> bool:
        over = original(self)
        if self.progress.spent.steps == step:
            raise KilledError
        return over

    return after_step


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return MemarchModel.from_pretrained(folder / "model").state_dict()


def initial_weights(spec: dict[str, Any]) -> dict[str, torch.Tensor]:
    size = build_task(spec["task"]).vocab_size
    return build_model(spec["model"], vocab_size=size, seed=1).state_dict()


def assert_same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("spec", "every", "kill"),
    [
        pytest.param(make_spec(schedule="cosine", warmup=2.0, eval_every=2), 1, 3, id="no memory"),
        pytest.param(
            make_spec(RMT, accumulate=2, weight_decay=0.1, truncate=1), 2, 5, id="accumulation"
        ),
        pytest.param(
            make_spec(
                DELTANET,
                eval_every=2,
                stages=[
                    {"set": {"task.pairs": 1, "train.lr": 0.02}, "steps": 2},
                    {"set": {"model.segment_length": 2}, "until": {"loss": 100.0}},
                ],
            ),
            3,
            4,
            id="stages",
        ),
        pytest.param(
            make_spec(
                trainable="lora",
                lora={"rank": 2, "dropout": 0.5},
                budget={"tokens": 150},
                schedule="linear",
            ),
            2,
            3,
            id="random dropout",
        ),
    ],
)
def test_a_continued_run_equals_the_uninterrupted_one(spec, every, kill, tmp_path, monkeypatch):
    spec["train"]["checkpoint_every"] = every
    whole = train(spec, tmp_path / "whole", ignore)
    with monkeypatch.context() as patch:
        patch.setattr(Session, "after_step", kill_at(kill))
        with pytest.raises(KilledError):
            train(spec, tmp_path / "cut", ignore)
    torch.manual_seed(12345)  # a new process has other random states
    continued = train(spec, tmp_path / "cut", ignore)

    assert continued["resumed_at"] == kill - kill % every
    assert_same_weights(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    same = [name for name in whole["metrics"] if not name.startswith(("cost/", "train/seconds"))]
    assert {n: continued["metrics"][n] for n in same} == {n: whole["metrics"][n] for n in same}
    assert continued["stages"] == whole["stages"]


def test_a_finished_run_is_only_evaluated_again(tmp_path):
    spec = make_spec(RMT)
    first = train(spec, tmp_path, ignore)
    again = train(spec, tmp_path, ignore)
    assert again["resumed_at"] == 8
    assert again["metrics"]["eval/kv/loss"] == first["metrics"]["eval/kv/loss"]


def test_accumulation_equals_one_large_batch(tmp_path, monkeypatch):
    """The mean is over all labels of the step, however they are spread over its batches."""
    parts = make_spec(RMT, accumulate=2, clip=None)
    session = Session(parts, tmp_path, ignore)
    monkeypatch.setattr(session, "after_step", lambda: True)
    first, second = (next(session.stage.batches) for _ in range(2))
    model = copy.deepcopy(session.model)
    whole = {name: torch.cat([first[name], second[name]]) for name in first}
    model(**whole).loss.backward()
    session.stage.batches = iter([first, second])
    trainer = SessionTrainer(session)
    gradients = {}

    def keep() -> None:
        gradients.update({n: p.grad.clone() for n, p in session.model.named_parameters()})

    monkeypatch.setattr(session, "after_update", keep)
    trainer.train()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


def test_each_part_has_its_learning_rate(tmp_path):
    session = Session(make_spec(RMT, lr={"memory": 0.5, "backbone": 0.25}), tmp_path, ignore)
    trainer = SessionTrainer(session)
    trainer.create_optimizer()
    trainer.create_scheduler(0)
    names = {id(p): name for name, p in session.model.named_parameters()}
    rates = {
        names[id(parameter)]: group["lr"]
        for group in session.optimizer.param_groups
        for parameter in group["params"]
    }
    assert rates.keys() == set(names.values())
    for name, rate in rates.items():
        assert rate == (0.5 if name.startswith(("memories.", "write_tokens")) else 0.25), name


def test_weight_decay_spares_norms_and_biases():
    model = build_model(make_spec(DELTANET)["model"], vocab_size=12)
    groups = optimizers.parameter_groups(model, weight_decay=0.1)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim < 2 or "norm" in name or name.endswith("bias")
        assert decays[id(parameter)] == (0.0 if spared else 0.1), name


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1]),
        ("constant", 2.0, [0.5, 1, 1, 1]),
        ("constant", 0.5, [0.5, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0.0, [0.5 * (1 + math.cos(math.pi * x)) for x in (0, 0.25, 0.5, 0.75)]),
        ("linear", 2.0, [0.5, 1, 1, 0.5]),
    ],
)
def test_learning_rate_schedules(schedule, warmup, expected):
    budget = Budget("steps", 4)
    rates = [budget.learning_rate_factor(schedule, warmup, Spent(steps=step)) for step in range(4)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("unit", ["tokens", "flops"])
def test_schedules_follow_the_budget_in_its_own_unit(unit):
    budget = Budget(unit, 100)
    half = Spent(steps=7, **{unit: 50})
    assert budget.learning_rate_factor("linear", 0.0, half) == pytest.approx(0.5)


@pytest.mark.parametrize("trainable", ["memory", "lora", "all"])
def test_what_trains(trainable, tmp_path):
    spec = make_spec(RMT, trainable=trainable)
    before = initial_weights(spec)
    session = Session(spec, tmp_path, ignore)
    for name, parameter in session.model.named_parameters():
        memory = name.startswith(("memories.", "write_tokens"))
        wanted = trainable == "all" or memory or (trainable == "lora" and ".lora_" in name)
        assert parameter.requires_grad == wanted, name
    train(spec, tmp_path, ignore)
    after = weights(tmp_path)
    assert after.keys() == before.keys()  # adapters are merged
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    memory = {name for name in after if name.startswith(("memories.", "write_tokens"))}
    assert memory <= changed
    layers = {name for name in changed - memory if ".layers." in name}
    assert bool(layers) == (trainable != "memory")
    if trainable == "memory":
        assert changed == memory
    if trainable == "lora":
        assert not any("norm" in name or "embed" in name for name in changed)


@pytest.mark.parametrize("backbone", ["gpt2", "gpt_neox"])
def test_lora_in_other_backbones(backbone, tmp_path):
    spec = make_spec(trainable="lora", lora={"rank": 2}, budget={"steps": 2})
    spec["model"]["backbone"]["type"] = backbone
    session = Session(spec, tmp_path, ignore)
    batch = next(session.stage.batches)
    SessionTrainer(session).train()
    session.model.eval()
    before = session.model(**batch).loss
    training.save_model(session, tmp_path / "model")
    loaded = MemarchModel.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(loaded(**batch).loss, before)


def test_nothing_to_train_is_an_error(tmp_path):
    with pytest.raises(SpecError, match="trains nothing"):
        Session(make_spec(trainable="memory"), tmp_path, ignore)


def test_stages_advance_on_a_metric_or_on_steps(tmp_path):
    stages = [
        {"name": "easy", "set": {"task.pairs": 1}, "until": {"loss": 100.0}},
        {"set": {"model.segment_length": 2}, "steps": 3},
    ]
    spec = make_spec(DELTANET, stages=stages, eval_every=2, early_stop="none")
    rows = []
    result = train(spec, tmp_path, lambda step, metrics: rows.append((step, metrics)) or False)
    assert result["stages"] == [
        {"name": "easy", "start": 0, "end": 2, "reason": "until"},
        {"name": "stage-2", "start": 2, "end": 5, "reason": "steps"},
        {"name": "main", "start": 5, "end": 8, "reason": "budget"},
    ]
    assert "stage/exact_match" in rows[0][1]
    assert all("eval/kv/exact_match" in metrics for _, metrics in rows)


def test_a_stage_trains_on_its_own_task_and_model(tmp_path):
    write = {"type": "forward", "steps": 2}
    stages = [{"set": {"task.pairs": 1, "model.memory.main.write": write}, "steps": 1}]
    session = Session(make_spec(RMT, stages=stages), tmp_path, ignore)
    assert next(session.stage.batches)["context_ids"].shape[1] == 2
    assert session.stage.model.spec.memory["main"].write.steps == 2
    assert session.model.spec.memory["main"].write.steps == 1
    shared = dict(session.model.named_parameters())
    assert all(p is shared[name] for name, p in session.stage.model.named_parameters())


def test_a_stage_may_thaw_the_backbone(tmp_path):
    stages = [{"set": {"train.trainable": "memory"}, "steps": 4}]
    spec = make_spec(RMT, stages=stages, budget={"steps": 4})
    before = initial_weights(spec)
    train(spec, tmp_path / "frozen", ignore)
    after = weights(tmp_path / "frozen")
    name = "backbone.model.layers.0.mlp.up_proj.weight"
    assert torch.equal(after[name], before[name])
    spec["train"]["budget"] = {"steps": 5}
    train(spec, tmp_path / "thawed", ignore)
    assert not torch.equal(weights(tmp_path / "thawed")[name], before[name])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("task.nothing.here", "no 'nothing'"),
        ("train.budget.steps", "holds for the whole run"),
        ("eval.kv.size", "under task, model or train"),
    ],
)
def test_impossible_stages_are_errors(path, message):
    with pytest.raises(SpecError, match=message):
        stage_specs(make_spec(stages=[{"set": {path: 1}, "steps": 1}]))


def test_a_stage_waiting_for_an_unknown_metric_is_an_error(tmp_path):
    stages = [{"set": {"task.pairs": 1}, "until": {"recall": 0.9}}]
    with pytest.raises(SpecError, match="no metric 'recall'"):
        train(make_spec(stages=stages, eval_every=1), tmp_path, ignore)


@pytest.mark.parametrize(
    ("budget", "steps"), [({"steps": 3}, 3), ({"tokens": 70}, 3), ({"flops": 1.0}, 1)]
)
def test_budgets(budget, steps, tmp_path):
    result = train(make_spec(budget=budget), tmp_path, ignore)
    metrics = result["metrics"]
    assert metrics["train/steps"] == steps
    assert metrics["train/tokens"] == steps * 4 * (4 + 2)
    expected = metrics["cost/flops_train_per_token"] * metrics["train/tokens"]
    assert metrics["train/flops"] == pytest.approx(expected)
    assert result["stages"][-1]["reason"] == "budget"


def test_a_budget_in_hours(tmp_path):
    result = train(make_spec(budget={"hours": 0.05 / 3600}), tmp_path, ignore)
    assert result["metrics"]["train/seconds"] >= 0.05
    assert result["metrics"]["train/steps"] >= 1


def test_about_ten_evaluations_a_run(tmp_path):
    steps = []
    spec = make_spec(budget={"steps": 20}, eval_every=None)
    train(spec, tmp_path, lambda step, metrics: steps.append(step) or False)
    assert steps == list(range(2, 22, 2))


def test_bf16_computes_in_bf16_and_keeps_weights_in_float32(tmp_path):
    spec = make_spec(DELTANET, precision="bf16")
    exact = train(make_spec(DELTANET), tmp_path / "exact", ignore)
    rough = train(spec, tmp_path / "rough", ignore)
    a, b = weights(tmp_path / "exact"), weights(tmp_path / "rough")
    assert all(value.dtype == torch.float32 for value in b.values())
    assert any(not torch.equal(a[name], b[name]) for name in a)
    assert rough["metrics"]["eval/kv/loss"] == pytest.approx(
        exact["metrics"]["eval/kv/loss"], rel=0.05
    )


def test_seeds_fix_everything(tmp_path):
    def run(name: str, **seeds: int) -> dict[str, torch.Tensor]:
        spec = make_spec(RMT)
        spec["study"]["seeds"] |= seeds
        torch.manual_seed(hash(name) % 1000)
        train(spec, tmp_path / name, ignore)
        return weights(tmp_path / name)

    first = run("first")
    assert_same_weights(run("again"), first)
    for other in (run("model", model=9), run("data", data=9)):
        assert any(not torch.equal(other[name], first[name]) for name in first)


def test_evaluating_more_often_changes_no_weight(tmp_path):
    train(make_spec(RMT, early_stop="none"), tmp_path / "seldom", ignore)
    train(make_spec(RMT, early_stop="none", eval_every=1), tmp_path / "often", ignore)
    assert_same_weights(weights(tmp_path / "seldom"), weights(tmp_path / "often"))


def test_a_solved_task_ends_the_run(tmp_path):
    rule = {"on": "loss", "above": 100.0, "patience": 2}
    result = train(make_spec(early_stop=rule, eval_every=2), tmp_path, ignore)
    assert result["metrics"]["train/steps"] == 4
    assert result["solved"]
    assert result["converged"]
    assert result["stages"][-1]["reason"] == "solved"


def test_by_default_exact_match_twice_in_a_row_is_solved(tmp_path):
    session = Session(make_spec(), tmp_path, ignore)
    for score in (1.0, 0.9, 1.0):
        session.note({"eval/kv/exact_match": score})
        assert not session.progress.solved
    session.note({"eval/kv/exact_match": 1.0})
    assert session.progress.solved


def test_a_report_stops_the_run(tmp_path):
    spec = make_spec(eval_every=2)
    result = train(spec, tmp_path, lambda step, metrics: step >= 4)
    assert result["pruned"]
    assert result["metrics"]["train/steps"] == 4
    assert result["metrics"]["cost/parameters"] > 0


def test_a_loss_that_is_no_number_is_a_failure(tmp_path):
    spec = make_spec(lr=1e30, clip=None, budget={"steps": 50})
    with pytest.raises(NotFiniteError, match=r"(NaN|infinite) loss at step \d+"):
        train(spec, tmp_path, ignore)


def test_init_from_a_saved_model(tmp_path):
    train(make_spec(), tmp_path / "first", ignore)
    spec = make_spec(RMT, init_from=str(tmp_path / "first"))
    session = Session(spec, tmp_path / "second", ignore)
    saved = weights(tmp_path / "first")
    own = session.model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in saved.items())
    assert set(own) > set(saved)


def test_init_from_a_trial_of_a_study(tmp_path):
    trials = tmp_path / "studies" / "old" / "trials"
    train(make_spec(), trials / "007", ignore)
    folder = tmp_path / "studies" / "new" / "trials" / "000"
    session = Session(make_spec(init_from="old/7"), folder, ignore)
    saved = weights(trials / "007")
    own = session.model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in saved.items())


def test_init_from_a_model_that_does_not_fit_names_what_does_not(tmp_path):
    train(make_spec(budget={"steps": 1}), tmp_path / "first", ignore)
    spec = make_spec(init_from=str(tmp_path / "first"))
    spec["model"]["backbone"] = spec["model"]["backbone"] | {"intermediate_size": 24}
    with pytest.raises(SpecError, match=r"3 of the weights .*up_proj.weight: \[64, 16\] there"):
        Session(spec, tmp_path / "second", ignore)
    with pytest.raises(SpecError, match="no saved model at 'nowhere/3'"):
        Session(make_spec(init_from="nowhere/3"), tmp_path / "third", ignore)


def test_truncated_backpropagation_changes_the_gradient(tmp_path):
    spec = make_spec(DELTANET, model={"segment_length": 1})
    train(spec, tmp_path / "whole", ignore)
    spec["train"]["truncate"] = 1
    result = train(spec, tmp_path / "cut", ignore)
    assert result["schedule"]["schedule"] != "layerwise"  # it has no place for a cut
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_sweeps_are_evaluated_at_the_end(tmp_path):
    spec = make_spec(RMT)
    model = copy.deepcopy(spec["model"])
    model["memory"]["main"]["write"] = {"steps": 3}
    spec["eval"]["kv"]["points"] = [{"name": "write_steps-3", "spec": {"model": model}}]
    spec["eval"]["far"] = spec["eval"]["kv"] | {"task": spec["task"] | {"pairs": 4}, "points": []}
    rows = []
    result = train(
        spec | {"train": spec["train"] | {"eval_every": 4}},
        tmp_path,
        lambda step, metrics: rows.append(metrics) or False,
    )
    here, there = (result["metrics"][f"eval/kv{name}/loss"] for name in ("", "/write_steps-3"))
    assert here != there
    assert "eval/far/exact_match" in result["metrics"]
    assert "eval/kv/write_steps-3/loss" not in rows[0]
    assert "eval/far/loss" not in rows[0]
    assert result["metrics"] == rows[-1]


def test_what_the_pruner_and_the_objectives_need_is_evaluated_on_the_way(tmp_path):
    spec = make_spec(RMT, eval_every=4)
    model = copy.deepcopy(spec["model"])
    model["memory"]["main"]["write"] = {"type": "forward", "steps": 3}
    kv = spec["eval"]["kv"]
    spec["eval"] = {
        "other": kv,
        "kv": kv | {"points": [{"name": "steps-3", "spec": {"model": model}}]},
        "far": kv | {"task": spec["task"] | {"pairs": 4}},
    }
    spec["study"]["objective"] = {"eval/kv/steps-3/loss": "minimize"}
    spec["study"]["pruner"] = {"type": "median", "on": "eval/far/exact_match"}
    session = Session(spec, tmp_path, ignore)
    assert [point.prefix for point in session.watched] == ["kv/steps-3", "far"]
    assert (session.primary, session.maximize) == ("eval/kv/steps-3/loss", False)


def test_an_evaluation_with_unknown_tokens_is_an_error(tmp_path):
    spec = make_spec(budget={"steps": 1})
    task = spec["task"] | {"alphabet": 30}
    spec["eval"]["far"] = spec["eval"]["kv"] | {"task": task}
    with pytest.raises(SpecError, match=r"eval.far.task: has \d+ tokens, but the model knows"):
        train(spec, tmp_path, ignore)


def test_a_run_leaves_nothing_but_its_folder(tmp_path, monkeypatch, capfd):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    train(make_spec(), tmp_path / "run", ignore)
    assert not list(elsewhere.iterdir())
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoints", "model"}


def test_costs_are_measured(tmp_path):
    metrics = train(make_spec(RMT), tmp_path, ignore)["metrics"]
    assert metrics["cost/state_floats"] == 2 * 16
    assert metrics["cost/tokens_per_second"] > 0
    assert metrics["cost/wall_seconds"] > metrics["train/seconds"] > 0
    assert metrics["cost/peak_memory_bytes"] > 10**6
    json.dumps(metrics, allow_nan=False)


@pytest.mark.parametrize(
    ("curve", "maximize", "expected"),
    [
        ([0.1, 0.2, 0.5, 0.5, 0.9, 0.9, 0.9, 0.9], True, True),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], True, False),
        ([4.0, 3.0, 2.0, 1.5, 1.2, 1.1, 1.0, 0.9], False, False),
        ([4.0, 3.0, 2.0, 1.5, 1.2, 1.0, 1.0, 0.999], False, True),
        ([0.9, 0.9], True, False),
    ],
)
def test_convergence(curve, maximize, expected):
    assert has_converged(curve, maximize) is expected
