"""`memarch bench` and, where only torch and transformers are, `python -m memarch.bench`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from memarch.bench.shapes import MEMORIES, MODES, PRESETS, adapt
from memarch.bench.study import PARTS
from memarch.components.errors import SpecError, did_you_mean
from memarch.output import document_only, log

if TYPE_CHECKING:
    import torch

    from memarch.bench.result import Document

STDOUT = "-"
BATCHES = (1, 8, 64)


def run(arguments: Sequence[str], program: str) -> None:
    """Run `diagonal`, `kernels` or `plot`; SpecError where the arguments are wrong."""
    options = _parser(program).parse_args(arguments)
    if getattr(options, "plot", None) is not None:
        from memarch.bench.plot import check_plotly

        check_plotly()
    options.command(options)


def main() -> int:
    """Entry point of `python -m memarch.bench`; the exit code."""
    try:
        run(sys.argv[1:], "python -m memarch.bench")
    except SpecError as error:
        log(f"error: {error}")
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """Wrong arguments are an error like any other wrong input."""

    def error(self, message: str) -> NoReturn:
        raise SpecError(f"{message}; see `{self.prog} --help`")


def _diagonal(options: argparse.Namespace) -> None:
    from memarch.bench import diagonal

    device = _device(options.device, options.impl)
    llamas = [name for name in PRESETS if name != "small"]
    presets = options.preset or (llamas if device.type == "cuda" else ["small"])
    _check_presets(presets, options, device)
    settings = diagonal.Settings(
        shapes=adapt(
            [shape for name in presets for shape in PRESETS[name]],
            layers=options.layers,
            width=options.width,
            segment_lengths=options.segment_length,
            segments=options.segments,
        ),
        memories=options.memory or MEMORIES,
        modes=options.mode or MODES,
        batches=options.batch or BATCHES,
        training_tokens=options.training_tokens,
        impl=options.impl,
        device=device,
        seconds=options.seconds,
    )
    _measure(options, lambda: diagonal.run(settings, log))


def _check_presets(
    presets: Sequence[str], options: argparse.Namespace, device: torch.device
) -> None:
    if "small" in presets:
        return
    if device.type != "cuda" and options.device != "cpu":
        raise SpecError(
            f"--preset {' '.join(presets)} is for a GPU, and torch finds none: hours on a CPU; "
            "`--preset small` is for a CPU, and `--device cpu` runs the large ones all the same"
        )
    for flag in ("memory", "mode", "batch"):
        if getattr(options, flag) is not None:
            raise SpecError(
                f"--{flag} is for --preset small; the Llama shapes are an ARMT's inference of one "
                "row"
            )


def _kernels(options: argparse.Namespace) -> None:
    from memarch.bench import kernels

    for name in options.operation or ():
        if name not in kernels.OPERATIONS:
            raise SpecError(
                f"unknown operation {name!r}; {did_you_mean(name, list(kernels.OPERATIONS))}"
            )
    settings = kernels.Settings(
        operations=options.operation or list(kernels.OPERATIONS),
        device=_device(options.device, "auto"),
        compile=options.compile,
        seconds=options.seconds,
    )
    _measure(options, lambda: kernels.run(settings, log))


def _study(options: argparse.Namespace) -> None:
    from memarch.bench import study

    given = {
        name: value
        for name, value in vars(options).items()
        if value is not None and name in study.Settings.__dataclass_fields__
    }
    settings = study.Settings(**given)
    _measure(options, lambda: study.run(settings, log), study.text)


def _plot(options: argparse.Namespace) -> None:
    from memarch.bench.plot import check_plotly, write_plot

    check_plotly()
    _check_folder(options.page)
    try:
        found = json.loads(options.file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{options.file}: {error.strerror}") from None
    except ValueError:
        found = None
    try:
        write_plot(found, options.page)
    except (KeyError, TypeError):
        raise SpecError(f"{options.file} is no result of `memarch bench`") from None
    print(options.page)


def _check_folder(file: Path) -> None:
    """Before anything is measured for it."""
    if not file.parent.is_dir():
        raise SpecError(f"there is no folder {file.parent} to write {file.name} to")


def _measure(
    options: argparse.Namespace,
    work: Callable[[], Iterable[Document]],
    table: Callable[[Document], str] | None = None,
) -> None:
    """Run it; a file holds what was found so far, whatever happens afterwards."""
    for file in (options.json, options.plot):
        if file not in (None, STDOUT):
            _check_folder(Path(file))
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    with document_only(options.json == STDOUT):
        for found in work():
            whole = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
            if options.json not in (None, STDOUT):
                Path(options.json).write_text(whole + "\n", encoding="utf-8")
    from memarch.bench.result import text

    print(whole if options.json == STDOUT else (table or text)(found), flush=True)
    if options.plot is not None:
        from memarch.bench.plot import write_plot

        write_plot(found, options.plot)


def _device(name: str, impl: str) -> torch.device:
    import torch

    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise SpecError("--device cuda: torch finds no GPU here")
    device = torch.device("cuda" if found and name != "cpu" else "cpu")
    if impl == "triton" and device.type != "cuda":
        raise SpecError("--impl triton needs an NVIDIA GPU; use auto or reference on a CPU")
    return device


def _parser(program: str) -> argparse.ArgumentParser:
    top = _Parser(prog=program, description="Measure speed, side by side in one run.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    diagonal = _command(commands, "diagonal", _diagonal, _ABOUT_DIAGONAL)
    _several(diagonal, "--preset", tuple(PRESETS), "which sizes of model")
    _several(diagonal, "--memory", MEMORIES, "which memories")
    _several(diagonal, "--mode", MODES, "forward only, or a training step")
    diagonal.add_argument(
        "--batch",
        nargs="+",
        type=_count,
        metavar="N",
        help="batch sizes  [default: 1 8 64]",
    )
    diagonal.add_argument("--layers", type=_count, metavar="N", help="another number of layers")
    diagonal.add_argument("--width", type=_count, metavar="N", help="another hidden size")
    diagonal.add_argument(
        "--segment-length", nargs="+", type=_count, metavar="N", help="other tokens in a segment"
    )
    diagonal.add_argument("--segments", type=_count, metavar="N", help="another number of segments")
    diagonal.add_argument(
        "--training-tokens",
        type=_count,
        default=16384,
        metavar="N",
        help="of all rows together: larger batches train on fewer segments  [default: 16384]",
    )
    diagonal.add_argument(
        "--impl",
        choices=("auto", "reference", "triton"),
        default="auto",
        help="of all candidates  [default: auto]",
    )
    _common(diagonal, seconds=10.0)

    kernels = _command(commands, "kernels", _kernels, _ABOUT_KERNELS)
    kernels.add_argument("--operation", nargs="+", metavar="NAME", help="these only")
    kernels.add_argument(
        "--no-compile", dest="compile", action="store_false", help="leave torch.compile out"
    )
    _common(kernels, seconds=2.0)

    study = _command(commands, "study", _study, _ABOUT_STUDY)
    _several(study, "--parts", PARTS, "which parts; all of them by default")
    for flag, about in {
        "--trials": "of the part trials  [default: 5000]",
        "--workers": "simulated  [default: 1000]",
        "--worker-trials": "of the simulated workers  [default: 3000]",
        "--steps": "of a training of the part share  [default: 300]",
        "--trainings": "of the part share, a core  [default: 4]",
    }.items():
        study.add_argument(flag, type=_count, metavar="N", help=about)
    for flag, about in {
        "--seconds": "of reports in the part values  [default: 15]",
        "--worker-seconds": "of a simulated worker's trial, in the mean  [default: 40]",
    }.items():
        study.add_argument(flag, type=_seconds, metavar="N", help=about)
    _json_option(study)
    study.set_defaults(plot=None, threads=None)

    plot = _command(commands, "plot", _plot, _ABOUT_PLOT)
    plot.add_argument("file", type=Path, metavar="FILE.json")
    plot.add_argument("page", type=Path, metavar="PAGE.html")
    return top


def _command(
    commands: Any, name: str, work: Callable[[argparse.Namespace], None], about: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(command=work)
    return parser


def _several(
    parser: argparse.ArgumentParser,
    flag: str,
    choices: Sequence[str],
    about: str,
) -> None:
    parser.add_argument(
        flag,
        nargs="+",
        choices=choices,
        metavar="NAME",
        help=f"{about}: {', '.join(choices)}",
    )


def _common(parser: argparse.ArgumentParser, *, seconds: float) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=_count, metavar="N", help="threads on the CPU")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=seconds,
        metavar="N",
        help=f"time for one case, beyond three runs of each candidate  [default: {seconds:g}]",
    )
    _json_option(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE.html", help="bars of the ratios")


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="print one JSON document and nothing else; with FILE, keep it there, case by case",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds, got {text!r}")
    return seconds


_ABOUT_DIAGONAL = """\
The orders of a model's cells, side by side: sequential against diagonal, layerwise and auto.

  memarch bench diagonal                                  the default table of this machine
  memarch bench diagonal --batch 1 --memory armt          a part of it
  memarch bench diagonal --preset llama-1b --json FILE    a long input on a GPU

Without a GPU the sizes are `small`: two models at which searches run, inference and training step,
several batch sizes, some twenty minutes on two cores. With one they are the Llama shapes: an ARMT
over 131,072 tokens against the ceilings of the hardware, the sequential order and full attention;
--memory, --mode and --batch are for `small`."""

_ABOUT_KERNELS = """\
Each operation's Triton kernel against plain PyTorch and torch.compile, and as share of a ceiling.

  memarch bench kernels
  memarch bench kernels --operation delta_rule rms_norm --json FILE

The ceilings are measured in the same run: the bandwidth of a large copy, the rate of a large matrix
product. Where flash-linear-attention is installed, the delta rules are compared with its kernels.
Without a GPU only plain PyTorch and torch.compile are timed."""

_ABOUT_STUDY = """\
What orchestration costs: empty trials a second, reported values a second, the sampler's own time,
1,000 simulated workers, and real trainings in a study against the same by hand.

  memarch bench study --json benchmarks/results/study.json     all of it
  memarch bench study --parts trials --trials 300              a part, small

The machine must have nothing else to do. All of it takes about twelve minutes on two cores."""

_ABOUT_PLOT = """\
Draw a kept result.

  memarch bench plot benchmarks/results/diagonal_cpu.json page.html"""


if __name__ == "__main__":
    sys.exit(main())
