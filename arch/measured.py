"""How long the orders of cells take, measured on the model itself: what `schedule: auto` goes by.

A step of each order runs a few times on made-up input of the real sizes, forwards or forwards and
backwards; the time of S segments through L layers follows from its number of steps:

    sequential   S t_sweep                                    t_sweep: one segment, all layers
    diagonal     t_stack + sum_d t(g_d)                       g_d: live cells of diagonal d
                 t(g) = t_1 + (g - 1) / (L - 1) (t_L - t_1)   measured with one cell and with all
    layerwise    a + b S                                      from 2 and from up to 16 segments

Measurements are kept on disk, so that the same model on the same machine is always run in the same
order: orders agree only up to rounding. `$MEMARCH_CACHE` says where, by default the user's cache
folder.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from memarch.arch.cells import Cell
from memarch.arch.diagonal import Diagonal
from memarch.arch.graphs import CapturedStep, Step
from memarch.arch.run import Run, Wanted, cut_whole
from memarch.arch.schedules import layerwise
from memarch.arch.sweep import Sweep
from memarch.arch.work import How, States, Work, flatten

if TYPE_CHECKING:
    from memarch.arch.model import MemarchModel

MADE = 2
"""Counts up when measurements are made in another way: older ones are then of no use."""
ROUNDS = 5
PATIENCE = 3.0
"""Seconds after which no further round begins."""
CHAINED = 8
"""Steps that a measurement with gradients runs in one graph."""
SHORT, LONG = 2, 16
"""Segments of the two layerwise runs: what no cache holds takes longer, which few do not show."""
LAYERWISE_TOKENS = 2**18
"""Tokens of all rows together up to which `auto` may hold the whole input at every layer."""


_MET: WeakKeyDictionary[MemarchModel, dict[object, Times]] = WeakKeyDictionary()
"""What this process has looked up for a model: its name alone costs milliseconds."""

_WRITTEN: dict[Path, dict[str, Any]] = {}
"""What this process has measured, by file: others may have replaced a file meanwhile."""
UNIMPORTANT = ("dtype", "_name_or_path", "architectures", "transformers_version")
"""Settings of a backbone that change by saving and loading it, not its speed."""


@dataclass(frozen=True)
class Times:
    """Seconds, for one batch size. Without layerwise times that order was impossible."""

    sweep: float
    stack: float
    one: float
    full: float
    layerwise: tuple[float, float] | None
    long: int = LONG
    """Segments of the longer layerwise run."""

    def sequential(self, segments: int) -> float:
        """S segments, one after the other."""
        return segments * self.sweep

    def diagonal(self, segments: int, layers: int) -> float:
        """S segments through L layers along the diagonals."""
        return self.stack + sum(self._step(g, layers) for g in group_sizes(segments, layers))

    def layer_by_layer(self, segments: int) -> float:
        """Each layer over S segments at once."""
        assert self.layerwise is not None
        short, long = self.layerwise
        return short + (segments - SHORT) * (long - short) / (self.long - SHORT)

    def _step(self, cells: int, layers: int) -> float:
        return self.one + (cells - 1) / max(layers - 1, 1) * (self.full - self.one)


def group_sizes(segments: int, layers: int) -> list[int]:
    """How many cells each diagonal has: S + L - 1 numbers that add up to S * L."""
    return [min(d, segments - 1) - max(0, d - layers + 1) + 1 for d in range(segments + layers - 1)]


def measured_times(model: MemarchModel, batch: int, how: How, *, layerwise: bool) -> Times:
    """The times of this model, from disk where they are known. `batch` rows, gradients as set."""
    met = _MET.setdefault(model, {})
    trained = tuple(weight.requires_grad for weight in model.parameters())
    key = (batch, how, layerwise, _circumstances(model), trained)
    if key not in met:
        met[key] = _kept_times(model, batch, how, layerwise=layerwise)
    return met[key]


def _kept_times(model: MemarchModel, batch: int, how: How, *, layerwise: bool) -> Times:
    file, key = _file(), _key(model, batch, how, layerwise)
    known = _read(file) | _WRITTEN.setdefault(file, {})
    if key not in known:
        _WRITTEN[file][key] = asdict(_measure(model, batch, how, layerwise=layerwise))
        known = _read(file) | _WRITTEN[file]
        _write(file, known)
    pair = known[key]["layerwise"]
    return Times(**known[key] | {"layerwise": None if pair is None else tuple(pair)})


def _measure(model: MemarchModel, batch: int, how: How, *, layerwise: bool) -> Times:
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        state = model._fresh(batch)
        work = _made_up_work(model, batch, how)
        cells, item = model.cells(), work[1]
        weights = [weight for cell in cells for weight in cell.parameters() if weight.requires_grad]
        sweep, one, full = (
            Sweep(cells, state.layers, how),
            Diagonal(cells, state.layers, how),
            Diagonal(cells, state.layers, how),
        )
        runs: dict[str, Callable[[], object]] = {
            "sweep": _step(sweep.step, *sweep.fill(item), weights, captured=how.graphs),
            "stack": lambda: Diagonal(cells, state.layers, how),
            "one": _step(one.step, *one.fill(item, 1), weights, captured=False),
            "full": _step(full.step, *full.fill(item, len(cells)), weights, captured=how.graphs),
        }
        if layerwise:
            for name, count in (("short", SHORT), ("long", len(work))):
                runs[name] = _layerwise(cells, work[:count], state.layers, how, weights)
        seconds = _side_by_side(runs, model.device)
        for name in ("sweep", "one", "full"):
            seconds[name] /= _chained()
    pair = (seconds.pop("short"), seconds.pop("long")) if layerwise else None
    return Times(**seconds, layerwise=pair, long=len(work))


def _made_up_work(model: MemarchModel, batch: int, how: How) -> list[Work]:
    """Full segments, as in the middle of an input."""
    length = model.spec.segment_length
    count = min(LONG, max(SHORT + 1, LAYERWISE_TOKENS // (batch * length)))
    ids = torch.arange(batch * count * length, device=model.device).view(batch, -1)
    ids = ids % model.view.embedding.num_embeddings
    cuts = cut_whole(ids, None, length)
    work = Run(model, how).work(cuts, model._fresh(batch), Wanted(answers=False, uniform=True))
    return [Work(_leaf(item.x), item.segment) for item in work]


def _step(
    step: Step, fed: Tensor, carried: Sequence[Tensor], weights: Sequence[Tensor], *, captured: bool
) -> Callable[[], object]:
    if captured:
        step = CapturedStep(step, fed, carried)
        return lambda: step(fed, carried)
    leaves = [_leaf(tensor) for tensor in carried]

    def run() -> None:
        after, tops = leaves, []
        for _ in range(_chained()):
            top, after = step(fed, after)
            tops.append(top)
        _backward([*tops, *after], [fed, *leaves, *weights])

    return run


def _chained() -> int:
    """Steps of one measurement: with gradients, those of the weights are unstacked once a run."""
    return CHAINED if torch.is_grad_enabled() else 1


def _layerwise(
    cells: Sequence[Cell], work: list[Work], states: States, how: How, weights: Sequence[Tensor]
) -> Callable[[], object]:
    def run() -> None:
        tops, after = layerwise(cells, work, states, how)
        _backward([*tops, *flatten(after)], [*(item.x for item in work), *weights])

    return run


def _leaf(tensor: Tensor) -> Tensor:
    wanted = torch.is_grad_enabled() and tensor.is_floating_point()
    return tensor.detach().requires_grad_(wanted)


def _backward(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """The backward pass to all inputs, where there is one; parameters' own gradients stay."""
    outputs = [tensor for tensor in outputs if tensor.requires_grad]
    inputs = [tensor for tensor in inputs if tensor.requires_grad]
    if outputs:
        ones = [torch.ones_like(tensor) for tensor in outputs]
        torch.autograd.grad(outputs, inputs, ones, allow_unused=True)


def _side_by_side(
    runs: Mapping[str, Callable[[], object]], device: torch.device
) -> dict[str, float]:
    """The least time of each, in rounds of all of them."""
    best: dict[str, float] = {}
    started = time.perf_counter()
    for rounds in range(ROUNDS + 1):
        if rounds > 1 and time.perf_counter() - started > PATIENCE:
            break
        for name, run in runs.items():
            seconds = _timed(run, device)
            if rounds:  # the first one warms up
                best[name] = min(seconds, best.get(name, seconds))
    return best


def _timed(run: Callable[[], object], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def _key(model: MemarchModel, batch: int, how: How, layerwise: bool) -> str:
    """A name for all that the times depend on."""
    shapes = [[list(p.shape), p.requires_grad] for cell in model.cells() for p in cell.parameters()]
    spec = model.spec.canonical() | {"schedule": None}
    config = model.backbone.config.to_dict()
    config = {name: value for name, value in config.items() if name not in UNIMPORTANT}
    parts: list[Any] = [
        [MADE, _version(), torch.__version__, _device_name(model.device)],
        [*_circumstances(model), batch, how.checkpoint, how.graphs, layerwise],
        [spec, config, shapes],
    ]
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _circumstances(model: MemarchModel) -> tuple[int | str | bool | None, ...]:
    return (
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        _autocast(model.device),
        str(model.dtype),
        str(model.device),
    )


def _version() -> str:
    try:
        return version("memarch")
    except PackageNotFoundError:  # a source tree on the path
        return "source"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor()


def _autocast(device: torch.device) -> str | None:
    if not torch.is_autocast_enabled(device.type):
        return None
    return str(torch.get_autocast_dtype(device.type))


def _file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MEMARCH_CACHE") or Path(cache) / "memarch") / "schedules.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(file: Path, known: dict[str, Any]) -> None:
    """Whole or not at all; a folder that cannot be written costs a measurement, no more."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=file.parent, delete=False) as temporary:
            json.dump(known, temporary)
        os.replace(temporary.name, file)
