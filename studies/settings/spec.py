"""The sections of a study file: typed settings with their defaults, and the checks across sections.

`load_study` reads a file by them. Nothing here imports transformers, Optuna, Ray or MLflow, so that
`memarch validate` answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    SerializeAsAny,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core.core_schema import ValidationInfo

from memarch.arch.settings import Hours, Seconds, join, parse, show
from memarch.arch.spec import ModelSpec, Name, normalize_component
from memarch.components.errors import SpecError, did_you_mean
from memarch.search_spaces.reading import FindTrial
from memarch.search_spaces.study_file import StudyFile
from memarch.studies.cluster.resources import ResourceSettings
from memarch.studies.driver.policies import OnFailure
from memarch.studies.records.store import find_spec
from memarch.studies.search.domination import AT_THE_END
from memarch.studies.settings.search import Racing, WarmStart, named_study, switched
from memarch.studies.settings.sizes import MatchSettings, ScaleSettings
from memarch.studies.settings.strict import Given, Strict
from memarch.studies.tasks.base import TaskSettings, tasks
from memarch.studies.training.stages import CHANGEABLE_TRAIN_KEYS

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(gt=0, lt=1)]
Above0 = Annotated[float, Field(gt=0)]
Split = Literal["train", "validation", "test"]

METRIC = re.compile(r"[A-Za-z0-9_./-]+")


_ALSO_CALLED = {"cma-es": "cmaes", "successive_halving": "halving"}


def _type_of(value: object) -> object:
    """`tpe` -> `{type: tpe}`; names that papers write otherwise become ours."""
    given = {"type": value} if isinstance(value, str) else value
    if isinstance(given, Mapping) and given.get("type") in _ALSO_CALLED:
        return {**given, "type": _ALSO_CALLED[given["type"]]}
    return given


# study


class TpeSampler(Given):
    """Tree-structured Parzen estimator, branch by branch of the variants."""

    type: Literal["tpe"]
    n_startup_trials: Positive | None = None
    """Trials drawn at random before the estimator starts."""
    n_ei_candidates: Positive | None = None
    """Candidates from which each value is chosen."""
    multivariate: bool | None = None
    """Model the parameters jointly."""
    group: bool | None = None
    """Model each branch of the variants by itself."""
    constant_liar: bool | None = None
    """Keep parallel trials apart."""


class RandomSampler(Given):
    """Every trial anew, whatever the others gave."""

    type: Literal["random"]


class GridSampler(Given):
    """All combinations in random order."""

    type: Literal["grid"]


class Nsga2Sampler(Given):
    """A genetic algorithm, for several objectives."""

    type: Literal["nsga2"]
    population_size: Positive | None = None
    """Trials in a generation."""
    mutation_prob: Share | None = None
    """Chance that a value is drawn anew."""
    crossover_prob: Share | None = None
    """Chance that two parents are mixed."""


class GpSampler(Given):
    """Gaussian process."""

    type: Literal["gp"]
    n_startup_trials: Positive | None = None
    """Trials drawn at random first."""


class CmaesSampler(Given):
    """Covariance matrix adaptation, for one objective and numbers only."""

    type: Literal["cmaes"]
    n_startup_trials: Positive | None = None
    """Trials drawn at random first."""
    sigma0: Above0 | None = None
    """The first step size."""


class QmcSampler(Given):
    """Quasi-Monte Carlo: points that fill the space evenly."""

    type: Literal["qmc"]
    qmc_type: Literal["sobol", "halton"] | None = None
    """The sequence of points."""
    scramble: bool | None = None
    """Shift the sequence at random."""


Sampler = Annotated[
    TpeSampler | RandomSampler | GridSampler | Nsga2Sampler | GpSampler | CmaesSampler | QmcSampler,
    Field(discriminator="type"),
]


class NoPruner(Given):
    """Every trial runs to its end."""

    type: Literal["none"]


class _Pruner(Given):
    on: str | None = None
    """The metric that is compared; by default the first objective."""
    after: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """No trial stops before this share of its budget."""


class MedianPruner(_Pruner):
    """Stop what is below the median of the others at the same share of the budget."""

    type: Literal["median"]
    n_startup_trials: Annotated[int, Field(ge=0)] | None = None
    """Trials that run to their end first."""


class HalvingPruner(_Pruner):
    """Successive halving: the better part of the trials goes on at each rung."""

    type: Literal["halving"]
    reduction_factor: Annotated[int, Field(ge=2)] | None = None
    """One trial in so many goes on."""


class HyperbandPruner(_Pruner):
    """Successive halving with several starting points."""

    type: Literal["hyperband"]
    reduction_factor: Annotated[int, Field(ge=2)] | None = None
    """One trial in so many goes on."""


class DominationPruner(Given):
    """Stop what others of its variant beat in every objective, at the same share of the budget."""

    type: Literal["domination"]
    after: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """No trial stops before this share of its budget."""
    by: Positive = 3
    """So many other trials have to dominate it."""


Pruner = Annotated[
    NoPruner | MedianPruner | HalvingPruner | HyperbandPruner | DominationPruner,
    Field(discriminator="type"),
]


class StudyBudget(Given):
    """When a study ends: whichever limit is reached first."""

    trials: Positive | None = None
    """Trials that run."""
    hours: Hours | None = None
    """Time on the clock, over all sessions of the study."""
    flops: Above0 | None = None
    """Training FLOPs of all trials together."""


class Seeds(Strict):
    """A seed for each source of chance. A list of model seeds runs every point once with each."""

    model: Seed | Annotated[list[Seed], Field(min_length=1)] = 1
    """Initial weights, and whatever is random in training."""
    data: Seed = 1
    """Training batches and questions: the same for all trials."""
    search: Seed = 1
    """The sampler's draws."""

    @model_validator(mode="after")
    def _once(self) -> Seeds:
        if isinstance(self.model, list) and len(set(self.model)) < len(self.model):
            raise SpecError(f"names a seed twice: {self.model}", path="model")
        return self


class Limits(Given):
    """Bounds of a metric: a trial outside of them is infeasible."""

    min: float | None = None
    """The smallest value that is allowed."""
    max: float | None = None
    """The largest value that is allowed."""

    @model_validator(mode="after")
    def _possible(self) -> Limits:
        if self.min is None and self.max is None:
            raise ValueError("needs `min` or `max`")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"cannot be met: min {self.min:g} is above max {self.max:g}")
        return self


class StudySettings(Strict):
    """Which trials run, and what makes one better than another."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None
    """The study's name, and its folder's; by default the file's."""
    question: str | None = None
    """What the study is to answer, in a sentence: reports begin with it."""
    design: Literal["search", "grid", "all", "ablation"] = "search"
    """Draw trials by the sampler, cross all values, run each variant once, or the settings of
    `ablation:` against their baseline."""
    objective: dict[str, Literal["maximize", "minimize"]] = Field(default_factory=dict)
    """Metrics to directions; by default the first evaluation's main metric."""
    budget: StudyBudget = StudyBudget()
    """When the study ends; a search needs one."""
    seeds: Seeds = Seeds()
    """A seed for each source of chance."""
    sampler: Annotated[Sampler, BeforeValidator(_type_of, json_schema_input_type=str | Sampler)] = (
        TpeSampler(type="tpe")
    )
    """How a search draws: a name, or a map with `type` and the sampler's own settings."""
    pruner: Annotated[Pruner, BeforeValidator(_type_of, json_schema_input_type=str | Pruner)] = (
        NoPruner(type="none")
    )
    """How trials are stopped early: a name, or a map with `type`."""
    constraints: dict[str, Limits] = Field(default_factory=dict)
    """Metrics to bounds, such as `cost/state_bytes: {max: 64KiB}`."""
    finalists: Annotated[int, Field(ge=0)] = 3
    """The best settings, whose `test/…` metrics are computed after the search, for all seeds."""
    trial_time_limit: Seconds | None = None
    """A trial that runs longer fails."""
    stall_limit: Seconds | None = 1800.0
    """A trial without a training step or a part of an evaluation for so long is ended; null for
    never. The longest step, and the time to read data and to build, must be shorter."""
    on_failure: OnFailure = OnFailure()
    """What is done about each kind of failure."""
    first: list[dict[str, Any]] = Field(default_factory=list)
    """Points that a search runs first, such as `{variant: gradmem, num_tokens: 8}`."""
    warm_start: list[
        Annotated[WarmStart, BeforeValidator(named_study, json_schema_input_type=str | WarmStart)]
    ] = Field(default_factory=list)
    """Earlier studies whose finished trials the sampler learns from: names, or
    `{study: NAME, top: 20}`."""
    racing: Annotated[
        Racing | None, BeforeValidator(switched, json_schema_input_type=bool | Racing | None)
    ] = None
    """Give no further seeds to points that cannot win any more."""
    repeat: bool = False
    """Run equal specs again, where they otherwise share one result."""
    eval_time_limit: Seconds | None = None
    """The same for an evaluation that is a job of its own: of finalists, or by `resources.eval`."""

    @model_validator(mode="after")
    def _consistent(self) -> StudySettings:
        if self.design == "ablation" and self.pruner.type != "none":
            raise SpecError(
                "an ablation compares trials that all ran to their end; use `none`", path="pruner"
            )
        if self.design == "ablation" and self.racing is not None:
            raise SpecError("an ablation compares all settings over all seeds", path="racing")
        for name in self.objective:
            _check_metric(name, join("objective", name), "an objective")
        on = getattr(self.pruner, "on", None)
        if on is not None:
            _check_metric(on, "pruner.on", "a pruner's metric", kinds=("eval", "train"))
        for name in self.constraints:
            _check_metric(name, join("constraints", name), "a constraint")
        if self.sampler.type == "cmaes" and len(self.objective) > 1:
            raise SpecError("cmaes takes one objective; use nsga2, tpe or gp", path="sampler")
        if self.sampler.type == "cmaes" and self.constraints:
            raise SpecError("cmaes knows no constraints; use tpe, nsga2 or gp", path="sampler")
        if self.pruner.type == "domination":
            for name in self.objective:
                if name in AT_THE_END:
                    raise SpecError(
                        f"domination compares all objectives on the way, and {name} is known only "
                        "at the end: take another pruner, or make it a constraint",
                        path="pruner",
                    )
        self._check_search()
        return self

    def _check_search(self) -> None:
        """First points and earlier studies have something to act on."""
        draws = self.design == "search" and self.sampler.type != "grid"
        if self.first and not draws:
            raise SpecError("a grid runs all its points; `first` goes with a search", path="first")
        if self.warm_start and (not draws or self.sampler.type in ("random", "qmc")):
            raise SpecError(
                "only a search with a sampler that learns has use for earlier trials: tpe, gp, "
                "nsga2 or cmaes",
                path="warm_start",
            )


def _check_metric(
    name: str, path: str, what: str, kinds: tuple[str, ...] = ("eval", "cost", "train")
) -> None:
    kind, _, rest = name.partition("/")
    if kind == "test":
        raise SpecError(
            f"{what} cannot be {name!r}: validation selects, and test scores are computed once, "
            f"after the search; use 'eval/{rest}'",
            path=path,
        )
    if kind not in kinds or not rest or not METRIC.fullmatch(name):
        names = " or ".join(f"{kind}/…" for kind in kinds)
        raise SpecError(f"{what} must be a metric's name, {names}, got {name!r}", path=path)


# train


class TrainBudget(Strict):
    """How much a trial may spend, in one unit."""

    steps: Positive | None = None
    """Updates of the weights."""
    tokens: Above0 | None = None
    """Tokens in training batches, padding not counted."""
    flops: Above0 | None = None
    """FLOPs of forward and backward passes."""
    hours: Hours | None = None
    """Time of training alone."""

    @model_validator(mode="after")
    def _one(self) -> TrainBudget:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"needs one of steps, tokens, flops, hours; got {got}")
        return self


class Rates(Strict):
    """A learning rate for each part of the model."""

    memory: Annotated[float, Field(ge=0)]
    """For the parameters of memories and write tokens."""
    backbone: Annotated[float, Field(ge=0)]
    """For everything else."""


class LoraSettings(Strict):
    """Low-rank adapters beside the backbone's linear layers, used with `trainable: lora`."""

    rank: Positive = 8
    """Rank of an adapter."""
    alpha: Above0 = 16.0
    """An adapter's output counts alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on an adapter's input."""
    targets: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the linear layers; by default all inside the decoder layers."""


class StageSettings(Strict):
    """A part of training under changed values; each stage starts from the file's own."""

    name: Name | None = None
    """What records call it."""
    steps: Positive | None = None
    """The stage ends after so many steps."""
    until: dict[str, float] | None = None
    """The stage ends when these metrics of the stage's own task are reached."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Values by key path, such as `{vars.pairs: 4, train.lr: 1e-4}`."""


class EarlyStop(Strict):
    """Stop when a metric stays above a value."""

    on: str | None = None
    """The metric; by default the objective's evaluation's main one."""
    above: float = 0.999
    """The value to reach."""
    patience: Positive = 2
    """Evaluations in a row that must reach it."""


def _saved_model(text: str, info: ValidationInfo) -> str:
    """A folder becomes an absolute path; `STUDY/NUMBER` is looked up when training starts."""
    folders = (info.context or {}).get("folders") or (Path(),)
    for folder in folders:
        candidate = folder / Path(text).expanduser()
        if candidate.is_dir():
            return str(candidate.resolve())
    if text.startswith((".", "/", "~")) or not re.fullmatch(r"[^/]+/\d+", text):
        raise SpecError(f"there is no folder {text!r}, and it is not of the form STUDY/NUMBER")
    return text


class TrainSettings(Strict):
    """How a trial trains. Numbers below 1 that stand for steps are shares of the budget."""

    budget: TrainBudget
    """`{steps | tokens | flops | hours}`."""
    batch_size: Positive = 32
    """Samples in a batch."""
    accumulate: Positive = 1
    """Batches in a step."""
    lr: Annotated[float, Field(gt=0)] | Rates = 1e-3
    """Learning rate: one number, or `{memory, backbone}`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of AdamW; norms and biases are spared."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Of AdamW."""
    clip: Above0 | None = 1.0
    """Largest norm of the gradient; null for no limit."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up, over the rest of the budget."""
    warmup: Annotated[float, Field(ge=0)] = 0.0
    """Steps of rising learning rate, or a share of the budget such as `5%`."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` computes in bfloat16 where that is safe; weights stay in float32."""
    trainable: Literal["memory", "lora", "all"] = "all"
    """Which parameters train."""
    lora: LoraSettings = LoraSettings()
    """Adapters of `trainable: lora`."""
    init_from: Annotated[str, AfterValidator(_saved_model)] | None = None
    """A saved model, or `STUDY/NUMBER`, whose weights training starts from."""
    truncate: Positive | None = None
    """Segments through which the gradient flows back; by default all."""
    stages: list[StageSettings] = Field(default_factory=list)
    """A curriculum; after the last stage the rest of the budget trains under the file's values."""
    eval_every: Positive | None = None
    """Steps between evaluations; by default ten in a run."""
    early_stop: Literal["none"] | EarlyStop | None = None
    """By default a run stops when exact match is 0.999 twice in a row; `none` never stops early."""
    checkpoint_every: Positive | None = None
    """Steps between checkpoints; by default every 20 seconds."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        if "lora" in self.model_fields_set and self.trainable != "lora":
            changed = self.lora != LoraSettings()
            if changed:
                raise SpecError(
                    f"has no effect with `trainable: {self.trainable}`; write `trainable: lora`",
                    path="lora",
                )
        for index, stage in enumerate(self.stages):
            last = index == len(self.stages) - 1
            if not last and stage.steps is None and not stage.until:
                raise SpecError(
                    "needs `steps` or `until`, for another stage comes after it",
                    path=join("stages", index),
                )
        return self


# eval


class EvalSettings(Strict):
    """One named evaluation."""

    task: Any = "same"
    """`same` as in training, a map of what differs from it, or another task with its `type`."""
    split: Literal["train", "validation"] = "validation"
    """Which data; `test` is computed once, for finalists, by memarch itself."""
    size: Positive | None = None
    """Samples of validation; by default as many as the task has, or its own number where it
    generates them. A test split that is not generated is always scored whole."""
    batch_size: Positive = 64
    """Samples in a batch."""
    generate: bool = False
    """Also let the model write its answers freely."""
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Key paths to lists of values, such as `{vars.write_steps: [1, 2, 5]}`."""
    points: SkipJsonSchema[list[dict[str, Any]]] = Field(default_factory=list)
    """The sweep's evaluations as concrete specs; computed."""


# The whole


def parse_task(raw: Any, path: str = "", folders: Sequence[Path] = ()) -> TaskSettings:
    """A task's settings by the registry; what data it names must be there."""
    if isinstance(raw, TaskSettings):
        return raw
    if not isinstance(raw, Mapping):
        raise SpecError(f"must be a map with `type`, got {show(raw)}", path=path)
    normal = normalize_component(tasks, raw, path)
    settings: TaskSettings = parse(
        tasks[normal["type"]].cls.Settings, normal, path, folders=folders
    )
    return settings


def _task(raw: Any, info: ValidationInfo) -> TaskSettings:
    return parse_task(raw, folders=(info.context or {}).get("folders", ()))


class TrialSpec(Strict):
    """Everything about one trial, concrete."""

    study: StudySettings = StudySettings()
    """Which trials run, and what makes one better."""
    task: Annotated[SerializeAsAny[TaskSettings], PlainValidator(_task)]
    """The data, and how answers are scored."""
    model: ModelSpec
    """Backbone, memories, segment length."""
    train: TrainSettings
    """How a trial trains."""
    eval: dict[Name, EvalSettings] = Field(default_factory=dict)
    """Named evaluations; by default one, of the training task."""
    resources: ResourceSettings = ResourceSettings()
    """What one trial needs."""
    match: MatchSettings | None = None
    """Comparisons at equal size."""
    scale: ScaleSettings | None = None
    """The model made larger by a rule."""

    sections: ClassVar[Sequence[str]] = (
        "study",
        "task",
        "model",
        "train",
        "eval",
        "resources",
        "match",
        "scale",
    )
    stage_keys: ClassVar[Sequence[str]] = CHANGEABLE_TRAIN_KEYS

    @staticmethod
    def cost(spec: Mapping[str, Any], name: str) -> float:
        """What a model of this spec costs, measured: the one thing here that imports torch."""
        from memarch.studies.search import costs

        return costs.size(spec, name)

    @classmethod
    def parse(cls, raw: Mapping[str, Any], folders: Sequence[Path] = ()) -> dict[str, Any]:
        """Concrete sections -> the same checked, in one form, with all defaults."""
        for name in ("task", "model", "train"):
            if name not in raw:
                raise SpecError(f"the section `{name}` is required, and is not given", path=name)
        spec = parse(cls, _with_evaluations(raw), folders=folders)
        _check_evaluations(spec)
        _check_processes(spec)
        data = spec.model_dump(mode="json")
        for name, settings in data["eval"].items():
            if settings["task"] != "same":
                full = _evaluation_task(spec.eval[name].task, raw["task"])
                task = parse_task(full, join("eval", name, "task"), folders)
                data["eval"][name]["task"] = task.model_dump(mode="json")
        if not data["study"]["objective"]:
            data["study"]["objective"] = _default_objective(spec)
        return data


def _check_processes(spec: TrialSpec) -> None:
    """Processes that train together share every batch evenly."""
    processes = spec.resources.processes
    if spec.train.batch_size % processes:
        raise SpecError(
            f"must be divisible by the {processes} processes that share it, got "
            f"{spec.train.batch_size}",
            path="train.batch_size",
        )


def _with_evaluations(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A file without evaluations has one, named after the task."""
    if raw.get("eval"):
        return dict(raw)
    task = raw["task"]
    kind = str(task.get("type", "")) if isinstance(task, Mapping) else ""
    return {**raw, "eval": {kind if kind.isidentifier() else "main": {}}}


def _evaluation_task(given: Any, training: Mapping[str, Any]) -> dict[str, Any]:
    """A map without `type` says what differs from the training task."""
    return dict(given) if "type" in given else {**training, **given}


def _check_evaluations(spec: TrialSpec) -> None:
    """What refers to evaluations names some that exist; tasks of evaluations are maps."""
    for name, settings in spec.eval.items():
        if settings.task != "same" and not isinstance(settings.task, Mapping):
            raise SpecError(
                f"must be `same` or a map, got {show(settings.task)}", path=f"eval.{name}.task"
            )
    study, train = spec.study, spec.train
    if train.trainable == "memory" and not spec.model.memory:
        raise SpecError(
            "`memory` trains nothing, for the model has no memory; use `all`",
            path="train.trainable",
        )
    named = {join("study.objective", name): name for name in study.objective}
    named |= {join("study.constraints", name): name for name in study.constraints}
    if getattr(study.pruner, "on", None):
        named["study.pruner.on"] = str(study.pruner.on)  # type: ignore[union-attr]
    if isinstance(train.early_stop, EarlyStop) and train.early_stop.on:
        named["train.early_stop.on"] = train.early_stop.on
    for path, name in named.items():
        kind, *rest = name.split("/")
        if kind == "eval" and rest[0] not in spec.eval:
            raise SpecError(
                f"there is no evaluation {rest[0]!r}; {did_you_mean(rest[0], spec.eval)}", path=path
            )
        if kind == "eval" and len(rest) < 2:
            metrics = ", ".join(_task_of(spec, rest[0]).metrics)
            raise SpecError(
                f"{name!r} names an evaluation and no metric; there are: {metrics}", path=path
            )
        if kind == "eval":
            _check_score(spec, rest, path)


def _check_score(spec: TrialSpec, parts: Sequence[str], path: str) -> None:
    """The metric's name is one that the task gives: at the training setting, or inside a sweep."""
    known = _task_of(spec, parts[0]).metrics
    names = {*known, "exact_match_generated"} if spec.eval[parts[0]].generate else set(known)
    plain = parts[1] in names or parts[1] == "floor"
    if not plain and not (spec.eval[parts[0]].sweep and len(parts) > 2):
        raise SpecError(
            f"evaluation {parts[0]!r} gives no {parts[1]!r}; {did_you_mean(parts[1], known)}",
            path=path,
        )


def _task_of(spec: TrialSpec, evaluation: str) -> Any:
    """The class of an evaluation's task."""
    given = spec.eval[evaluation].task
    kind = str(given.get("type")) if isinstance(given, Mapping) else ""
    return tasks[kind if kind in tasks else spec.task.type].cls


def _default_objective(spec: TrialSpec) -> dict[str, str]:
    name = next(iter(spec.eval))
    task = _task_of(spec, name)
    return {f"eval/{name}/{task.primary}": "maximize" if task.maximize else "minimize"}


def load_study(
    path: str | Path, overrides: Sequence[str] = (), *, find_trial: FindTrial | None = None
) -> StudyFile:
    """Read a study file; `overrides` are `--set` values such as `train.lr=1e-3`.

    `find_trial` looks up what `extends: {study: NAME, trial: best}` names, by default in the
    usual storage folder.
    """
    found = find_trial or (lambda name, trial: find_spec(None, name, trial))
    return StudyFile.load(path, overrides, schema=TrialSpec, find_trial=found)
