"""The command line: `memarch COMMAND`. Results go to stdout, everything else to stderr.

Exit codes: 0 done, 1 the work failed, 2 the input was wrong. Nothing heavy is imported here: each
command imports what it needs when it runs, so that help comes at once.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from memarch.components.errors import SpecError
from memarch.output import StoppedError, WorkFailedError, document_only, emit, log

QUIET = {
    "TQDM_DISABLE": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""What keeps libraries from writing between our lines."""

ASSIGNMENT = re.compile(r"[A-Za-z_][\w./\-\[\]]*=")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code. Wrong input is one line on stderr, never a traceback."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        app.main(spread_assignments(arguments), prog_name="memarch", standalone_mode=False)
    except SpecError as error:
        log(f"error: {error}")
        return 2
    except click.ClickException as error:
        log(f"error: {error.format_message()}")
        if isinstance(error, click.UsageError) and error.ctx is not None:
            log(f"see `{error.ctx.command_path} --help`")
        return 2
    except StoppedError as error:
        log(str(error))
        return 1
    except WorkFailedError as error:
        log(f"failed: {error}")
        return 1
    except (KeyboardInterrupt, click.Abort):
        log("interrupted")
        return 1
    except BrokenPipeError:  # `memarch … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def spread_assignments(arguments: Sequence[str]) -> list[str]:
    """`--set a=1 b=2` as `--set a=1 --set b=2`: one flag takes every assignment after it."""
    spread: list[str] = []
    for argument in arguments:
        follows = len(spread) > 1 and spread[-2] == "--set" and bool(ASSIGNMENT.match(argument))
        spread.extend(["--set", argument] if follows else [argument])
    return spread


class Commands(click.Group):
    """A group that lists its commands in the order of work and knows the nearest name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            near = difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self.commands)}"
            raise click.UsageError(f"unknown command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


def _storage(context: click.Context, parameter: click.Parameter, value: str | None) -> Path:
    from memarch.studies.records.store import storage_folder

    return storage_folder(value)


def _seed_list(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...]:
    texts = (value or "").replace(" ", "").split(",")
    if value and not all(text.isdigit() for text in texts):
        raise click.BadParameter(f"must be numbers with commas, such as 3,4,5; got {value!r}")
    return tuple(map(int, texts)) if value else ()


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)
storage_option = click.option(
    "--storage",
    metavar="FOLDER",
    callback=_storage,
    help="Where studies and their databases are.  [default: $MEMARCH_STORAGE or ./runs]",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE ...",
    help="Override values of the file, several after one flag: --set train.lr=1e-3 study.name=b",
)
database_option = click.option(
    "--database",
    metavar="URL",
    help="Of Optuna's record: postgresql://user@host/name, journal:///path, sqlite:///path. "
    "[default: $MEMARCH_DATABASE, or optuna.db in the storage folder]",
)
artifacts_option = click.option(
    "--artifacts",
    metavar="URL",
    help="Copy checkpoints and models there, by fsspec: s3://bucket/runs, file:///shared/runs. "
    "[default: $MEMARCH_ARTIFACTS, or no copies]",
)
file_argument = click.argument("file", type=click.Path(path_type=Path))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="memarch", prog_name="memarch")
def app() -> None:
    """Search over memory-augmented transformers: one YAML file in, a ranked answer out.

    \b
    A first study, from nothing to a picture:
      memarch new study my_study.yaml       a commented file to edit
      memarch validate my_study.yaml        is it right?
      memarch plan my_study.yaml            what will run, how large, how long
      memarch study run my_study.yaml       run it; ends with a ranked table
      memarch ui                            the trials in MLflow

    \b
    A memory of your own:
      memarch new memory my_memory.py       a working one to edit
      memarch check my_memory.py            the rules that every memory keeps
      plugins: [my_memory.py]               in the study file: it runs beside the others

    Exit codes: 0 done, 1 the work failed, 2 the input was wrong.
    """


@app.command()
@click.argument("name", required=False)
@json_option
def components(name: str | None, as_json: bool) -> None:
    """List the memories and tasks that a study may name, or explain one.

    \b
    memarch components              everything registered
    memarch components gradmem      equations, settings with types and defaults, state, paper

    Recurrence: with `per_segment` the state comes from the top of the previous segment, with
    `per_layer` from the same layer of it. State bytes are measured on a small float32 model of
    hidden size 64, 4 heads, 2 layers and segments of 16 tokens.
    """
    from memarch import catalogue

    with document_only(as_json):
        found = catalogue.describe(name)
    if as_json:
        emit(found)
        return
    from memarch import show

    show.component(found[0]) if name else show.components(found)


@app.command()
@click.argument("kind", type=click.Choice(["study", "memory", "task"]))
@click.argument("name")
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
def new(kind: str, name: str, force: bool) -> None:
    """Write a template to edit: a study, a memory or a task. Each works as it is.

    \b
    memarch new study my_study.yaml
    memarch new memory my_memory.py
    memarch new task my_task.py
    """
    from memarch.new import write_template

    path, hints = write_template(kind, Path(name), force=force)
    click.echo(f"wrote {path}")
    for hint in hints:
        click.echo(f"  {hint}")


@app.command()
@file_argument
@set_option
@storage_option
@json_option
def validate(file: Path, overrides: tuple[str, ...], storage: Path, as_json: bool) -> None:
    """Check a study file: every variant and every range, against the settings' types and bounds.

    \b
    memarch validate my_study.yaml
    memarch validate my_study.yaml --set model.segment_length=64

    Nothing is built or trained, but for sizes that `match` or `scale` solve for, which are those of
    models built without numbers. A mistake is reported with its file, line and key.
    """
    from memarch.inputs import open_study, what_runs

    with document_only(as_json):
        study = open_study(file, overrides, storage)
        notes = study.validate()
        spaces = {name: list(study.space(name)) for name in study.variants}
        sizes = study.sizing.rows
        runs = {name: what_runs(study, name) for name in study.variants}
        ablation = study.ablation.about() if study.ablation else None
    if as_json:
        found = {"valid": True, "file": str(file), "variants": spaces, "ablation": ablation}
        emit(found | {"sizes": sizes, "notes": notes})
        return
    click.echo(f"{file} is valid")
    for name, what in runs.items():
        click.echo(f"  {name or ('the model' if spaces[name] else 'one model')}: {what}")
    for note in notes:
        click.echo(f"note: {note}")
    if sizes:
        from memarch import show

        show.sizes(sizes)


@app.command()
@file_argument
@set_option
@storage_option
@click.option("--origins", is_flag=True, help="Show where every value comes from.")
@click.option("--dry", is_flag=True, help="Do not run the smallest and the largest trial.")
@json_option
def plan(
    file: Path,
    overrides: tuple[str, ...],
    storage: Path,
    origins: bool,
    dry: bool,
    as_json: bool,
) -> None:
    """Show what a study will run, how large it is, and how long it will take.

    \b
    memarch plan my_study.yaml
    memarch plan my_study.yaml --origins      default, file and line, variant, draw or --set

    Every variant is built at its smallest and largest; the smallest and the largest trial run a few
    steps, from which time and memory are estimated.
    """
    from memarch.inputs import open_study

    with document_only(as_json):
        study = open_study(file, overrides, storage)
        study.validate()  # before anything heavy is imported

        from memarch.studies.plan import plan_study

        document = plan_study(study, run=not dry, note=log)
    if as_json:
        emit(document)
        return
    from memarch import show

    show.plan(document, origins=origins)


@app.command()
@click.argument("file", metavar="FILE | STUDY/NUMBER")
@set_option
@storage_option
@click.option("--variant", help="Which of the file's variants.")
@click.option("--again", is_flag=True, help="Train anew although a finished model is there.")
@json_option
def train(
    file: str,
    overrides: tuple[str, ...],
    storage: Path,
    variant: str | None,
    again: bool,
    as_json: bool,
) -> None:
    """Train, evaluate and save one model: a file without ranges, or a study's trial again.

    \b
    memarch train model.yaml
    memarch train my_study.yaml --variant rmt --set vars.num_tokens=4 train.lr=1e-3
    memarch train my_study/7                 the trial again by its record, without Ray

    A run that was interrupted goes on from its last checkpoint. A trial is trained with the threads
    and the order of cells of its record; what else differs (versions, data, commit) is said, and
    whether the numbers are those of the record.
    """
    from memarch import train as training

    with document_only(as_json):
        if not Path(file).exists() and re.fullmatch(r".+/\d+", file):
            document = training.train_trial(file, storage, overrides)
        elif not Path(file).exists() and not Path(file).suffix:
            raise SpecError(f"{file}: there is no such file, and a trial is STUDY/NUMBER")
        else:
            document = training.train_file(Path(file), storage, overrides, variant, again=again)
    _metrics(document, as_json)


@app.command(name="eval")
@click.argument("model", metavar="MODEL | STUDY/NUMBER")
@file_argument
@set_option
@storage_option
@click.option("--variant", help="Which of the file's variants describes the evaluation.")
@json_option
def evaluate(
    model: str,
    file: Path,
    overrides: tuple[str, ...],
    storage: Path,
    variant: str | None,
    as_json: bool,
) -> None:
    """Evaluate a saved model by the `eval:` section of a file, also far beyond its training length.

    \b
    memarch eval my_study/7 long.yaml
    memarch eval runs/models/my_model-174c1c06 long.yaml --set task.pairs=64

    The file needs `task` and `model` too. The shortest way is to extend the file that the model was
    trained from, and to say only what differs:

    \b
    extends: my_model.yaml
    eval:
      long: {size: 512, task: {pairs: 64}}
    """
    from memarch import train as training

    with document_only(as_json):
        document = training.evaluate(model, file, storage, overrides, variant)
    _metrics(document, as_json)


@app.command()
@click.argument("trial", metavar="STUDY/NUMBER")
@click.argument("folder", type=click.Path(path_type=Path))
@storage_option
@json_option
def export(trial: str, folder: Path, storage: Path, as_json: bool) -> None:
    """Write a trained trial as a Hugging Face folder: weights, config, tokenizer, model card.

    \b
    memarch export my_study/7 my_model

    It loads with `memarch.load("my_model")`, and with transformers where memarch is installed:
    AutoModelForCausalLM.from_pretrained("my_model", trust_remote_code=True).
    """
    from memarch.inputs import find_trial
    from memarch.studies.training.exporting import export as write

    found = find_trial(trial, storage)
    if found is None:
        raise SpecError(f"{trial!r} is not STUDY/NUMBER, such as quickstart/7")
    with document_only(as_json):
        files = write(found, trial, folder)
    if as_json:
        emit({"trial": trial, "path": str(folder), "files": files})
        return
    for name in files:
        click.echo(folder / name)


@app.group(cls=Commands)
def study() -> None:
    """Run studies and look at them.

    \b
    memarch study run my_study.yaml
    memarch study list
    memarch study show my_study
    """


@study.command(name="run")
@file_argument
@set_option
@storage_option
@click.option("--as", "name", help="Run under another name than the file's.")
@click.option("--or-resume", is_flag=True, help="Go on with the study if it is there already.")
@click.option("--address", help="A Ray cluster: `auto` or ray://host:10001. Default: this machine.")
@database_option
@artifacts_option
@json_option
def study_run(
    file: Path,
    overrides: tuple[str, ...],
    storage: Path,
    name: str | None,
    or_resume: bool,
    as_json: bool,
    **where: str | None,
) -> None:
    """Run a study: search, grid, or every variant once, as its `design` says.

    \b
    memarch study run my_study.yaml
    memarch study run my_study.yaml --as longer --set study.budget.trials=100
    memarch study run my_study.yaml --address auto --set resources.gpus=1 train.precision=bf16

    Ctrl-C stops it; `memarch study resume NAME` goes on where it stopped. Nothing finished is lost.
    $MLFLOW_TRACKING_URI names another MLflow than the storage folder's; `off` is none.
    """
    from memarch import follow

    with document_only(as_json):
        document = follow.run(file, storage, overrides, name, or_resume, **where)
    _study_end(document, storage, as_json)


@study.command(name="resume")
@click.argument("name")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@set_option
@storage_option
@click.option("--address", help="A Ray cluster: `auto` or ray://host:10001. Default: this machine.")
@database_option
@artifacts_option
@json_option
def study_resume(
    name: str,
    file: Path | None,
    overrides: tuple[str, ...],
    storage: Path,
    as_json: bool,
    **where: str | None,
) -> None:
    """Go on with a study that was interrupted: finished trials stay, the rest is run.

    With FILE the study goes on under the changed file: what differs is shown, and what would make
    its finished trials incomparable is refused.

    \b
    memarch study resume my_study
    memarch study resume my_study --set study.budget.trials=48
    memarch study resume my_study my_study.yaml
    """
    from memarch import follow

    with document_only(as_json):
        document = follow.resume(name, storage, overrides, file=file, **where)
    _study_end(document, storage, as_json)


@study.command(name="extend")
@click.argument("name")
@click.option("--trials", help="More trials: `+20` adds, `60` is the new whole.")
@click.option("--hours", help="More time: `+2`, `90min`.")
@click.option("--seeds", callback=_seed_list, help="More model seeds, such as 3,4,5.")
@click.option("--top", type=click.IntRange(min=1), help="Seeds for so many of the best points.")
@storage_option
@click.option("--address", help="A Ray cluster: `auto` or ray://host:10001. Default: this machine.")
@json_option
def study_extend(
    name: str,
    trials: str | None,
    hours: str | None,
    seeds: tuple[int, ...],
    top: int | None,
    storage: Path,
    address: str | None,
    as_json: bool,
) -> None:
    """Give a study more trials, time or seeds, and go on with it.

    \b
    memarch study extend my_study --trials +20
    memarch study extend my_study --seeds 3,4,5            every point with three more seeds
    memarch study extend my_study --seeds 3,4,5 --top 5    the five best points only

    What is there stays: numbers go on, and the sampler knows all earlier trials.
    """
    from memarch import follow, studies_commands

    with document_only(as_json):
        overrides = studies_commands.extend(
            name, storage, trials=trials, hours=hours, seeds=seeds, top=top
        )
        document = follow.resume(name, storage, overrides, address=address)
    _study_end(document, storage, as_json)


@study.command(name="diff")
@click.argument("first", metavar="NAME | NAME/NUMBER")
@click.argument("second", metavar="NAME | NAME/NUMBER")
@storage_option
@json_option
def study_diff(first: str, second: str, storage: Path, as_json: bool) -> None:
    """Compare two studies, or two trials: settings that differ, and results side by side.

    \b
    memarch study diff my_study my_study2
    memarch study diff my_study/7 my_study2/3
    """
    from memarch.studies_commands import diff

    document = diff(first, second, storage)
    if as_json:
        emit(document)
        return
    from memarch import show

    show.diff(document)


@study.command(name="list")
@storage_option
@json_option
def study_list(storage: Path, as_json: bool) -> None:
    """List the studies of a storage folder.

    \b
    memarch study list --storage /data/runs
    """
    from memarch.studies.records.store import list_studies

    rows = list_studies(storage)
    if as_json:
        emit(rows)
        return
    from memarch import show

    show.studies(rows, storage)


@study.command(name="show")
@click.argument("name", metavar="NAME | NAME/NUMBER")
@storage_option
@click.option("--seeds", is_flag=True, help="Show every trial, not only settings over their seeds.")
@json_option
def study_show(name: str, storage: Path, seeds: bool, as_json: bool) -> None:
    """Show a study: its settings ranked, against the floors, with what each cost. Or one trial.

    With several seeds a setting has mean, median, range and how many seeds solved the task; an
    ablation has every setting against its baseline.

    \b
    memarch study show my_study
    memarch study show my_study --seeds
    memarch study show my_study/7     its settings, where each came from, its metrics and files
    memarch study show my_study --json | jq '.trials[0].metrics'
    """
    if re.fullmatch(r".+/\d+", name):
        from memarch.studies_commands import show_trial

        trial = show_trial(name, storage)
        if as_json:
            emit(trial)
            return
        from memarch import show

        show.trial(trial)
        return
    from memarch.studies.records.store import show_study

    document = show_study(name, storage)
    if as_json:
        from memarch.studies.results.ablation import conclusions

        emit(conclusions(document))
        return
    from memarch import show

    show.study(document, seeds=seeds)


@study.command(name="report")
@click.argument("name")
@storage_option
@click.option(
    "--format",
    type=click.Choice(["html", "md", "tex", "csv"]),
    default="html",
    show_default=True,
    help="The page; its tables as Markdown or LaTeX; or one row a trial.",
)
@click.option(
    "--png",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also write every picture to this folder.",
)
@click.option("--open/--no-open", "open_page", default=False, help="Open it, in a browser.")
@json_option
def study_report(
    name: str, storage: Path, format: str, png: Path | None, open_page: bool, as_json: bool
) -> None:
    """Write a study's report: leaderboard, fronts, what mattered, slices, curves, costs.

    \b
    memarch study report my_study --open
    memarch study report my_study --png pictures
    memarch study report my_study --format csv
    """
    from memarch.studies.records.store import find_study
    from memarch.studies.report.write import write_report

    path = write_report(find_study(storage, name).path, format, png)
    if open_page:
        click.launch(str(path))
    if as_json:
        emit({"name": name, "path": str(path)})
    else:
        click.echo(path)


@app.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Hold a memory of your own to the rules that every memory keeps.

    \b
    memarch check my_memory.py

    Strict settings, shapes, purity, batch invariance, causality, streaming equals whole, gradient
    through time, state bytes, save and load. Exit code 1 when a rule is broken.
    """
    if not file.is_file():
        raise SpecError(f"no such file: {file}")
    from memarch.arch.conformance import check_file

    with document_only(as_json):
        results = check_file(file)
    rows = [{"name": r.name, "passed": r.passed, "message": r.message} for r in results]
    if as_json:
        emit({"file": str(file), "passed": all(r.passed for r in results), "checks": rows})
    else:
        from memarch import show

        show.checks(rows)
    broken = sum(not r.passed for r in results)
    if broken:
        raise WorkFailedError(f"{broken} of {len(rows)} checks")


@app.group(cls=Commands)
def bench() -> None:
    """Measure speed: candidates for the same work, side by side in one run, as ratios.

    \b
    memarch bench diagonal
    memarch bench kernels
    memarch bench study
    memarch bench plot RESULT.json PAGE.html
    """


def _bench(name: str, about: str) -> None:
    """A command whose options are those of `python -m memarch.bench NAME`."""

    @bench.command(
        name=name,
        short_help=about,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    @click.pass_context
    def command(context: click.Context, arguments: tuple[str, ...]) -> None:
        from memarch.bench.__main__ import run as run_bench

        try:
            run_bench([name, *arguments], "memarch bench")
        except SystemExit:  # the help was asked for
            context.exit()


_bench("diagonal", "The orders of a model's cells, side by side.")
_bench("kernels", "Each operation's Triton kernel against PyTorch.")
_bench("study", "What orchestration costs: trials a second, samplers, 1,000 workers.")
_bench("plot", "Draw a kept result.")


@app.command()
@storage_option
@click.option("--port", default=5000, show_default=True, help="Port of the server.")
@click.option("--open/--no-open", "open_page", default=True, help="Open a browser when ready.")
def ui(storage: Path, port: int, open_page: bool) -> None:
    """Open the MLflow UI on a storage folder's studies. Ctrl-C stops it.

    \b
    memarch ui
    memarch ui --storage /data/runs --port 5001 --no-open

    One parent run a study with its report, one child run a trial. Only this machine can reach it.
    """
    from memarch.ui import serve

    serve(storage, port, open_page=open_page)


@app.command()
@click.option("--output", type=click.Path(path_type=Path), help="Write to a file.")
def schema(output: Path | None) -> None:
    """Print the JSON Schema of study files, for completion and checks in an editor.

    \b
    memarch schema --output memarch.schema.json
    and as first line of a YAML file:
    # yaml-language-server: $schema=memarch.schema.json
    """
    from memarch.schema import study_schema

    emit(study_schema(), output)


def _metrics(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(document)
        return
    from memarch import show

    show.metrics(document)


def _study_end(document: dict[str, Any], storage: Path, as_json: bool) -> None:
    if as_json:
        from memarch.studies.results.ablation import conclusions

        emit(conclusions(document))
    else:
        from memarch import show

        show.study(document)
        show.where_next(document, storage)
    if document["state"] == "interrupted":
        option = "" if storage == Path("runs").absolute() else f" --storage {storage}"
        again = f"memarch study resume {document['name']}{option}"
        raise StoppedError(f"interrupted; `{again}` goes on")
    if document["state"] == "failed":
        raise WorkFailedError(f"{document.get('reason')}; `memarch study resume` goes on")
    trials: Iterable[dict[str, Any]] = document["trials"]
    if not any(trial["state"] == "complete" for trial in trials):
        raise WorkFailedError("no trial completed; `memarch study show` has the reasons")


if __name__ == "__main__":
    main()
