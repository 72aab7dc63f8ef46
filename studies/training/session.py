"""A training run in progress: what is spent, which stage it is in, its scores, its checkpoints.

The Trainer's loop (`studies.trainer`) asks a session for batches and learning rates and tells it of
each step; the session decides about evaluations, stages, checkpoints and the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from memarch.arch.build import build_model
from memarch.arch.plan import Plan
from memarch.arch.settings import parse
from memarch.studies.cluster import heartbeat
from memarch.studies.driver.failures import NotFiniteError
from memarch.studies.driver.judging import FIXED_COSTS
from memarch.studies.results.replicates import SOLVED
from memarch.studies.search import costs
from memarch.studies.settings.spec import TrainSettings
from memarch.studies.tasks.base import Task
from memarch.studies.training import checkpoints, optimizers
from memarch.studies.training.budget import Budget, Spent
from memarch.studies.training.machine import reset_peak_memory, without_progress_bars
from memarch.studies.training.points import (
    Evaluator,
    Models,
    Point,
    canonical,
    check_vocabulary,
    eval_points,
    make_task,
    own_random_state,
    watched_points,
)
from memarch.studies.training.sampled_batches import training_batches
from memarch.studies.training.stages import StageRecord, is_met, stage_specs
from memarch.studies.training.team import Team
from memarch.studies.training.weights import find_model, load_weights

Report = Callable[[int, dict[str, float]], bool]
"""Called with a step and its metrics at each evaluation; returns True when the run is to stop."""

EVALUATIONS = 10
"""How often a run is evaluated on its way, unless `eval_every` says otherwise."""
EVALUATION_ROWS = 512
"""Rows of an evaluation on the way; the one at the end takes them all."""
CHECKPOINT_SECONDS = 20.0
SOLVED_IN_A_ROW = 2
FINITE_CHECK_STEPS = 20
"""A GPU is asked this often whether the loss is finite, for each time the host waits for it."""
STAGE_SEED = 1_000_003
"""Stages draw their data from seeds this far apart."""


@dataclass
class Progress:
    """All that changes while a run goes on and is no tensor: part of every checkpoint."""

    spent: Spent = field(default_factory=Spent)
    stage: int = 0
    stage_steps: int = 0
    batches: int = 0
    """Batches drawn in this stage: the position in its data."""
    batch_size: int = 0
    """Samples in each of them; another attempt may draw smaller ones."""
    stages: list[StageRecord] = field(default_factory=list)
    evaluations: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, primary metric) at each evaluation."""
    solved_in_a_row: int = 0
    solved: bool = False
    pruned: bool = False
    over: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    """What was reported last."""

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Progress:
        """The reverse of `dataclasses.asdict`."""
        progress = cls(**data)
        progress.spent = Spent(**data["spent"])
        progress.stages = [StageRecord(**record) for record in data["stages"]]
        return progress


@dataclass
class Stage:
    """What the steps of one stage use."""

    spec: Mapping[str, Any]
    task: Task
    model: Any
    train: TrainSettings
    batches: Iterator[dict[str, Tensor]]
    flops_per_token: float
    """Forward and backward."""


class Session:
    """One run of one resolved spec in one folder, new or continued from its checkpoint."""

    def __init__(self, spec: Mapping[str, Any], folder: Path, report: Report) -> None:
        self.started = self.saved = self.clock = time.perf_counter()
        self.spec, self.folder, self.report = spec, folder, report
        self.settings = train_settings(spec)
        self.budget = Budget.parse(self.settings.budget.model_dump())
        self.device = default_device()
        self.team = Team.here()
        self.loss_sum = torch.zeros((), device=self.device)
        self.loss_steps = 0
        self.optimizer: torch.optim.Optimizer | None = None
        self._costs: dict[str, dict[str, float]] = {}
        self._told = False
        set_seed(seed_of(spec, "model"))
        task = make_task(spec["task"], spec["model"])
        self.model = self._initial_model(task)
        self.models = Models(self.model, spec["model"])
        self.evaluator = Evaluator(self.models, seed_of(spec, "data"), self.device)
        self.watched = watched_points(spec)
        self.primary, self.maximize = self._primary(task)
        self.specs = stage_specs(spec)
        self.checkpoint = checkpoints.load_checkpoint(self.checkpoints)
        if self.checkpoint is None:
            self.progress = Progress()
        else:
            self.progress = Progress.restore(self.checkpoint["progress"])
            self.model.load_state_dict(self.checkpoint["model"])
            self.loss_sum += self.checkpoint["loss_sum"].to(self.device)
            self.loss_steps = self.checkpoint["loss_steps"]
        self.resumed_at = self.progress.spent.steps
        self.wall_before = self.progress.spent.wall
        if self.checkpoint is None:
            self._start_stage(0)
        else:
            self.stage = self._stage()

    @property
    def checkpoints(self) -> Path:
        """Where this run's checkpoints lie."""
        return self.folder / "checkpoints"

    @property
    def wall_seconds(self) -> float:
        """From the beginning of the run, all attempts together."""
        return self.wall_before + time.perf_counter() - self.started

    def costs(self) -> dict[str, float]:
        """`cost/...` of the spec itself, measured."""
        task = make_task(self.spec["task"], self.spec["model"])
        return self._measure(self.spec, task, self.model)

    def schedule(self) -> Plan:
        """The order of cells in training, for what is longer: contexts, or inputs without one."""
        lengths = self._lengths(self.spec, make_task(self.spec["task"], self.spec["model"]))
        settings = self.settings
        length = lengths["context_length"] or lengths["query_length"]
        with own_random_state(self.device):
            return self.model.resolved_schedule(settings.batch_size, length, settings.truncate)

    def _initial_model(self, task: Task) -> Any:
        seed = seed_of(self.spec, "model")
        with without_progress_bars():
            model = build_model(self.spec["model"], vocab_size=task.vocab_size, seed=seed)
        if self.settings.init_from is not None:
            load_weights(model, find_model(self.settings.init_from, self.folder))
        if self.settings.trainable == "lora":
            optimizers.add_lora(model.backbone, self.settings.lora.model_dump())
        return model.to(self.device)

    def _primary(self, task: Task) -> tuple[str, bool]:
        """The metric whose curve says whether the run has converged, and whether more is better."""
        objective = (self.spec.get("study") or {}).get("objective") or {}
        for name, direction in objective.items():
            if name.startswith("eval/"):
                return name, direction == "maximize"
        name = self.watched[0].prefix if self.watched else ""
        return f"eval/{name}/{task.primary}", task.maximize

    # Batches.

    def draw(self) -> Iterator[dict[str, Tensor]]:
        """Endless training batches, of whatever stage the run is in."""
        while True:
            self.progress.batches += 1
            yield next(self.stage.batches)

    def count(self, batches: list[dict[str, Tensor]]) -> None:
        """Add the tokens and FLOPs of one step to what is spent."""
        masks = ("attention_mask", "context_mask")
        tokens = sum(int(batch[key].sum()) for batch in batches for key in masks if key in batch)
        self.progress.spent.tokens += tokens
        self.progress.spent.flops += self.stage.flops_per_token * tokens

    # Stages.

    def _start_stage(self, index: int) -> None:
        progress, given = self.progress, self.settings.stages
        progress.stage, progress.stage_steps, progress.batches = index, 0, 0
        name = (given[index].name or f"stage-{index + 1}") if index < len(given) else "main"
        progress.stages.append(StageRecord(name, progress.spent.steps))
        self.stage = self._stage()
        self.set_learning_rates()

    def _stage(self) -> Stage:
        """The present stage, its data from the position that the run has reached."""
        index = self.progress.stage
        spec = self.specs[index]
        task, train = make_task(spec["task"], spec["model"]), train_settings(spec)
        check_vocabulary(task, self.model, f"train.stages.{index}.set")
        if self.progress.batch_size:
            drawn = self.progress.batches * self.progress.batch_size
            self.progress.batches = drawn // train.batch_size
        self.progress.batch_size = train.batch_size
        model = self.models.at(spec["model"])
        optimizers.set_trainable(self.model, train.trainable)
        model.train()
        seed = seed_of(spec, "data") + STAGE_SEED * index
        batches = training_batches(spec, task, train.batch_size, seed, self.progress.batches)
        flops = self._measure(spec, task, model)["cost/flops_train_per_token"]
        return Stage(spec, task, model, train, batches, flops)

    def _measure(self, spec: Mapping[str, Any], task: Task, model: Any) -> dict[str, float]:
        """The cost model at the lengths that the task's batches have."""
        key = canonical([spec["model"], spec["task"], spec["train"]])
        if key not in self._costs:
            found = costs.measured(spec, model, task)
            self._costs[key] = {name: value for name, value in found.items() if isfinite(value)}
        return self._costs[key]

    def _lengths(self, spec: Mapping[str, Any], task: Task) -> dict[str, int]:
        batch = next(task.batches("train", 1, seed_of(spec, "data"), 0))
        keys = {"context_length": "context_ids", "query_length": "input_ids"}
        return {n: int(batch[key].shape[1]) if key in batch else 0 for n, key in keys.items()}

    def _end_stage(self, reason: str) -> None:
        record = self.progress.stages[-1]
        record.end, record.reason = self.progress.spent.steps, reason

    def _stage_end(self, metrics: Mapping[str, float] | None = None) -> str:
        """Why the present stage ends here: `steps` or `until`; empty when it does not."""
        index, given = self.progress.stage, self.settings.stages
        if index >= len(given):
            return ""
        steps, until = given[index].steps, given[index].until
        if steps is not None and self.progress.stage_steps >= steps:
            return "steps"
        if until and metrics and is_met(until, metrics, f"train.stages.{index}.until"):
            return "until"
        return ""

    def _stage_metrics(self) -> dict[str, float]:
        """Scores on the present stage's own task and model, where its end depends on them."""
        index, given = self.progress.stage, self.settings.stages
        if index >= len(given) or not given[index].until or not self.watched:
            return {}
        spec = self.stage.spec
        point = Point("stage", "", spec["task"], spec["model"], self.watched[0].settings)
        metrics = self.evaluator.at(point, "validation", EVALUATION_ROWS)
        return {f"stage/{name}": value for name, value in metrics.items()}

    # Learning rates.

    def learning_rate(self, part: str) -> float:
        """The rate of a group of parameters in the next step."""
        settings, spent = self.settings, self.progress.spent
        factor = self.budget.learning_rate_factor(settings.schedule, settings.warmup, spent)
        return factor * optimizers.rate_of(self.stage.train.lr, part)

    def set_learning_rates(self) -> None:
        """Let a change of stage count from the next step on."""
        for group in self.optimizer.param_groups if self.optimizer is not None else ():
            group["lr"] = self.learning_rate(group["part"])

    # Steps.

    def after_update(self) -> None:
        """The weights have changed: count the step, before the next learning rate is asked for."""
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        if self.budget.unit == "hours":  # then it decides what the next step is
            seconds = self.team.ask(lambda: seconds)
        self.progress.spent.seconds += seconds
        heartbeat.beat()
        self.progress.spent.steps += 1
        self.progress.stage_steps += 1
        self.loss_steps += 1

    def after_step(self) -> bool:
        """Check, evaluate, change stage, save; whether the run is over."""
        progress = self.progress
        step = progress.spent.steps
        spent_all = self.budget.share(progress.spent) >= 1
        if spent_all or self.device.type == "cpu" or step % FINITE_CHECK_STEPS == 0:
            self._check_finite()
        if spent_all:
            progress.over = True
            self._end_stage("budget")
        elif self._stage_end() or self._evaluation_is_due():
            self._look()
        halted = self.team.ask(heartbeat.halted) and not progress.over
        if progress.over or halted or self._checkpoint_is_due():
            self.save()
        if halted:
            raise heartbeat.HaltedError
        self.clock = time.perf_counter()
        return progress.over

    def _check_finite(self) -> None:
        if not torch.isfinite(self.loss_sum):
            kind = "NaN" if torch.isnan(self.loss_sum) else "infinite"
            raise NotFiniteError(f"{kind} loss at step {self.progress.spent.steps}")

    def _evaluation_is_due(self) -> bool:
        if self.settings.eval_every is not None:
            return self.progress.spent.steps % self.settings.eval_every == 0
        return self._tenths() > self.progress.evaluations

    def _tenths(self) -> int:
        return int(self.budget.share(self.progress.spent) * EVALUATIONS + 1e-9)

    def _checkpoint_is_due(self) -> bool:
        every = self.settings.checkpoint_every
        if every is not None:
            return self.progress.spent.steps % every == 0
        return time.perf_counter() - self.saved > CHECKPOINT_SECONDS

    def _look(self) -> None:
        """Evaluate if it is time, report, and act on it: stop, or go to the next stage."""
        progress, reason = self.progress, self._stage_end()
        if self._evaluation_is_due():
            progress.evaluations = self._tenths()
            metrics = self.team.ask(lambda: self._scores(self.watched, EVALUATION_ROWS))
            stage_metrics = self.team.ask(self._stage_metrics)
            reason = reason or self._stage_end(stage_metrics)
            self.note(metrics)
            self._tell(metrics | stage_metrics)
            progress.over = progress.solved or progress.pruned
        if progress.over:
            self._end_stage("solved" if progress.solved else "pruned")
        elif reason:
            self._end_stage(reason)
            self._start_stage(progress.stage + 1)

    def _scores(self, points: Iterable[Point], limit: int | None) -> dict[str, float]:
        return {
            f"eval/{point.prefix}/{name}": value
            for point in points
            for name, value in self.evaluator.at(point, point.settings["split"], limit).items()
        }

    def note(self, metrics: Mapping[str, float]) -> None:
        """Continue the curve, and see whether the task is solved for good."""
        progress, rule = self.progress, self.settings.early_stop
        if self.primary in metrics:
            progress.curve.append((progress.spent.steps, metrics[self.primary]))
        if rule == "none" or (rule is None and not self.primary.endswith("/exact_match")):
            return
        goal, patience = {self.primary: SOLVED}, SOLVED_IN_A_ROW
        if rule is not None:
            goal, patience = {rule.on or self.primary: rule.above}, rule.patience
        good = bool(metrics) and is_met(goal, metrics, "train.early_stop.on")
        progress.solved_in_a_row = progress.solved_in_a_row + 1 if good else 0
        progress.solved = progress.solved_in_a_row >= patience

    def _tell(self, metrics: dict[str, float]) -> None:
        costs = {} if self._told else {k: v for k, v in self.costs().items() if k in FIXED_COSTS}
        self._told = True
        self.progress.metrics = metrics | costs | self.training_metrics()
        stop = self.team.ask(lambda: self.report(self.progress.spent.steps, self.progress.metrics))
        self.progress.pruned = bool(stop) and not self.progress.solved

    def training_metrics(self) -> dict[str, float]:
        """What a curve may be drawn against, and the mean loss since this was last asked for."""
        spent = self.progress.spent
        metrics = {
            "train/steps": float(spent.steps),
            "train/tokens": float(spent.tokens),
            "train/flops": spent.flops,
            "train/seconds": spent.seconds,
            "train/stage": float(self.progress.stage),
        }
        if self.loss_steps:
            metrics["train/loss"] = float(self.loss_sum) / self.loss_steps
            self.loss_sum.zero_()
            self.loss_steps = 0
        return metrics

    def final_metrics(self) -> dict[str, float]:
        """Every evaluation with its sweeps, on all rows."""
        return self.team.ask(lambda: self._scores(eval_points(self.spec), None))

    # Checkpoints.

    def save(self) -> None:
        """Write a checkpoint of everything."""
        assert self.optimizer is not None
        if not self.team.leads:
            return
        self.progress.spent.wall = self.wall_seconds
        content = {
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": checkpoints.random_state(),
            "loss_sum": self.loss_sum,
            "loss_steps": self.loss_steps,
        }
        step = self.progress.spent.steps
        try:
            checkpoints.save_checkpoint(self.checkpoints, step, content)
        except checkpoints.NoSpaceError as error:
            if not heartbeat.note(f"no checkpoint at step {step}, it trains on without: {error}"):
                raise
        self.saved = time.perf_counter()

    def begin(self) -> None:
        """Everything is built: from here on the random states are those of the run."""
        if self.checkpoint is not None:
            checkpoints.set_random_state(self.checkpoint["random"])
            self.checkpoint = None
        else:
            set_seed(seed_of(self.spec, "model"))
        # By now the Trainer has collected what an earlier trial left in a warm worker.
        reset_peak_memory()
        self.clock = time.perf_counter()


def train_settings(spec: Mapping[str, Any]) -> TrainSettings:
    """The section `train`, checked, with its defaults; without what was resolved beside them."""
    stages = [
        {key: value for key, value in stage.items() if key != "spec"}
        for stage in spec["train"].get("stages") or []
    ]
    given = {key: value for key, value in spec["train"].items() if key != "sample"}
    return parse(TrainSettings, {**given, "stages": stages}, "train")


def seed_of(spec: Mapping[str, Any], kind: str) -> int:
    """`model`: initial weights and whatever is random in training. `data`: equal for all trials of
    a study, so that they see the same batches and the same questions. Of a study's list of model
    seeds, one model outside of the study has the first."""
    given = ((spec.get("study") or {}).get("seeds") or {}).get(kind) or 0
    return int(given[0] if isinstance(given, list) else given)


def default_device() -> torch.device:
    """The GPU that this process may see, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
