"""How long the orders of cells take, measured on the model itself: what `schedule: auto` goes by.

Each order runs whole, forwards or forwards and backwards, over made-up input of n / 2 and of n
segments of the real sizes; n is a power of two, at most the S segments that there are. Where a step
of g cells takes u + v g, all orders take a time that is linear in S,

    sequential   S L (u + v)
    diagonal     (S + L - 1) u + S L v
    layerwise    L u + S L v

so the two runs tell a + b S. Whole runs, not single steps, because what a training holds of all
segments does not fit into any cache, and getting that memory takes its time too. Of two runs in
turn the faster one counts: the first finds neither memory nor kernels ready, which a training does
from its second step on. Where that would take too long, n is smaller.

Measurements are kept on disk, so that the same model on the same machine is always run in the same
order: orders agree only up to rounding. `$MEMARCH_CACHE` says where, by default the user's cache
folder.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
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

from memarch.arch.graphs import WARM_UP
from memarch.arch.run import Run, Wanted, cut_whole
from memarch.arch.schedules import SCHEDULES
from memarch.arch.work import How, Work, flatten

if TYPE_CHECKING:
    from memarch.arch.model import MemarchModel

MADE = 3
"""Counts up when measurements are made in another way: older ones are then of no use."""
ROUNDS = 5
PATIENCE = 3.0
"""Seconds after which what is measured is not measured again."""
BUDGET = 20.0
"""Seconds that measuring every order once may take: n is halved until it does."""
LEAST_RATE = {"sequential": 0.5, "diagonal": 0.5, "layerwise": 0.0}
"""Of the time of n segments, how much at least another n take: noise has no further say."""
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
    """Seconds of each possible order over n / 2 and over n segments, for one batch size."""

    n: int
    sequential: tuple[float, float]
    diagonal: tuple[float, float]
    layerwise: tuple[float, float] | None = None

    def plausible(self, layers: int) -> bool:
        """Whether the gain is one that grouping can give: L cells, or n segments, in one call."""
        whole = self.layerwise is None or self.sequential[1] <= 2 * self.n * self.layerwise[1]
        return whole and self.sequential[1] <= 2 * layers * self.diagonal[1]

    def seconds(self, segments: int) -> dict[str, float]:
        """What each order takes for so many segments."""
        found = {}
        for name, least in LEAST_RATE.items():
            pair: tuple[float, float] | None = getattr(self, name)
            if pair is not None:
                short, long = pair
                another = min(max(2 * (long - short), least * long), long)
                found[name] = long + another * (segments - self.n) / self.n
        return found


def measured_times(
    model: MemarchModel, batch: int, segments: int, how: How, *, layerwise: bool
) -> Times:
    """The times of this model, from disk where they are known. `batch` rows, gradients as set."""
    met = _MET.setdefault(model, {})
    trained = tuple(weight.requires_grad for weight in model.parameters())
    n = _measured_length(len(model.view.layers), segments, how, layerwise=layerwise)
    key = (batch, n, how, layerwise, _circumstances(model), trained)
    if key not in met:
        met[key] = _kept_times(model, batch, n, how, layerwise=layerwise)
    return met[key]


def _measured_length(layers: int, segments: int, how: How, *, layerwise: bool) -> int:
    """n: as near to S as can be where what is held grows with S, in training and layer by layer.

    Elsewhere half of n has all layers at work once, and graphs captured and run.
    """
    enough = 2 * (layers + 2 * WARM_UP if how.graphs else layers)
    grows = layerwise or torch.is_grad_enabled()
    return 2 ** ((segments if grows else min(segments, 2 * enough - 1)).bit_length() - 1)


def _kept_times(model: MemarchModel, batch: int, n: int, how: How, *, layerwise: bool) -> Times:
    file, key = _file(), _key(model, batch, n, how, layerwise)
    known = _read(file) | _WRITTEN.setdefault(file, {})
    if key not in known:
        _WRITTEN[file][key] = asdict(_measure(model, batch, n, how, layerwise=layerwise))
        known = _read(file) | _WRITTEN[file]
        _write(file, known)
    pairs = {name: tuple(pair) for name, pair in known[key].items() if isinstance(pair, list)}
    return Times(**known[key] | pairs)


def _measure(model: MemarchModel, batch: int, n: int, how: How, *, layerwise: bool) -> Times:
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        states = model._fresh(batch).layers
        cells, work = model.cells(), _made_up_work(model, batch, n, how)
        weights = [weight for cell in cells for weight in cell.parameters() if weight.requires_grad]
        names = [name for name in SCHEDULES if layerwise or name != "layerwise"]

        def seconds(name: str, segments: int) -> float:
            part = work[:segments]
            started = _now(model.device)
            tops, after = SCHEDULES[name](cells, part, states, how)
            _backward([*tops, *flatten(after)], [*(item.x for item in part), *weights])
            return _now(model.device) - started

        def fastest(name: str, segments: int) -> float:
            return min(seconds(name, segments), seconds(name, segments))

        times = _times(names, n, fastest)
        again = not times.plausible(len(cells))  # something else ran meanwhile
        return _times(names, n, fastest) if again else times


def _times(names: Sequence[str], n: int, seconds: Callable[[str, int], float]) -> Times:
    """The least of some rounds, at n segments or at as many as there is time for."""
    started = time.perf_counter()
    runs_a_segment = 2 * (1 + 1 / 2)
    expected = runs_a_segment * sum(seconds(name, 2) / 2 for name in names)
    while n > 2 and n * expected > BUDGET:
        n //= 2
    best: dict[str, tuple[float, float]] = {}
    for _ in range(ROUNDS):
        for name in names:
            found = seconds(name, n // 2), seconds(name, n)
            known = best.get(name, found)
            best[name] = min(found[0], known[0]), min(found[1], known[1])
        if time.perf_counter() - started > PATIENCE:
            break
    return Times(n, **best)


def _made_up_work(model: MemarchModel, batch: int, n: int, how: How) -> list[Work]:
    """Full segments, as in the middle of an input."""
    length = model.spec.segment_length
    ids = torch.arange(batch * n * length, device=model.device).view(batch, -1)
    ids = ids % model.view.embedding.num_embeddings
    cuts = cut_whole(ids, None, length)
    work = Run(model, how).work(cuts, model._fresh(batch), Wanted(uniform=True))
    return [Work(_leaf(item.x), item.segment) for item in work]


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(torch.is_grad_enabled())


def _backward(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """The backward pass to all inputs, where there is one; parameters' own gradients stay."""
    outputs = [tensor for tensor in outputs if tensor.requires_grad]
    inputs = [tensor for tensor in inputs if tensor.requires_grad]
    if outputs:
        ones = [torch.ones_like(tensor) for tensor in outputs]
        torch.autograd.grad(outputs, inputs, ones, allow_unused=True)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _key(model: MemarchModel, batch: int, n: int, how: How, layerwise: bool) -> str:
    """A name for all that the times depend on."""
    shapes = [[list(p.shape), p.requires_grad] for cell in model.cells() for p in cell.parameters()]
    spec = model.spec.canonical() | {"schedule": None}
    config = model.backbone.config.to_dict()
    config = {name: value for name, value in config.items() if name not in UNIMPORTANT}
    parts: list[Any] = [
        [MADE, _version(), torch.__version__, _device_name(model.device)],
        [*_circumstances(model), batch, n, how.truncate, how.checkpoint, how.graphs, layerwise],
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
