"""The command line, ``iro``. Whatever is slow to import is imported by the command that needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from iro_server import JsonObject
from iro_server.alignment.definition import DEFAULT_OPTIONS, AlignmentOptions
from iro_server.alignment.entry import BatchJob, JobEvent, JobUnavailable, batch_jobs, load_batch_job
from iro_server.cli import backup as cli_backup
from iro_server.cli import db as cli_db
from iro_server.cli import estimate as cli_estimate
from iro_server.cli import evals as cli_evals
from iro_server.cli import export as cli_export
from iro_server.cli import jobs as cli_jobs
from iro_server.cli import keys as cli_keys
from iro_server.cli import model as cli_model
from iro_server.cli import rollouts as cli_rollouts
from iro_server.cli.dataset_file import put_dataset, refuse_without_dataset
from iro_server.cli.demo import DemoError, MissingPackage
from iro_server.cli.model import model_dir, model_name
from iro_server.cli.options import (
    misspelled_settings,
    parse_value,
    read_grader,
    settings_of_environment,
    with_options_of,
)
from iro_server.engines.endpoints import EngineUnavailable
from iro_server.engines.prepare import DEFAULT_MODEL, ModelError
from iro_server.store.files import FileCorrupt

if TYPE_CHECKING:
    from iro_server.settings import Settings as ServerSettings

FAILED, BAD_INPUT = 1, 2
ALIGNED_SEARCH = DEFAULT_OPTIONS.search

console = Console(highlight=False)


class Commands(TyperGroup):
    """Bad input is one line on stderr and exit status 2, from whichever command; 1: a failed demo, an absent engine, a
    damaged file."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ValidationError as error:
            _fail(_mistakes(error, ()))
        except BrokenPipeError:  # as `| head` leaves: the command line ends without a word
            raise
        except OSError as error:
            _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except (ValueError, ModelError, MissingPackage) as error:
            _fail(str(error))
        except (DemoError, EngineUnavailable, FileCorrupt) as error:
            _fail(str(error), FAILED)


def _mistakes(error: ValidationError, fields: Collection[str]) -> str:
    return "; ".join(_explain(mistake, fields) for mistake in error.errors(include_url=False))


def _explain(mistake: Any, fields: Collection[str]) -> str:
    """``fields``: that there are at the top level."""
    where = ".".join(str(step) for step in mistake["loc"])
    message = str(mistake["msg"]).removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden" and fields and len(mistake["loc"]) == 1:
        similar = get_close_matches(where, fields, n=1)
        message = f"no such field; did you mean {similar[0]}?" if similar else f"not one of {', '.join(fields)}"
    return f"{where}: {message}" if where else message


def _fail(message: str, status: int = BAD_INPUT) -> None:
    typer.echo(f"Error: {' '.join(message.split())}", err=True)
    raise typer.Exit(status)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Align a frozen language model to a reward, and serve it.",
)
app.add_typer(cli_model.app, name="model")
app.add_typer(cli_keys.app, name="keys")
app.add_typer(cli_db.app, name="db")
app.add_typer(cli_rollouts.app, name="rollouts")
app.add_typer(cli_evals.app, name="evals")
app.add_typer(cli_jobs.app, name="jobs")
app.command()(cli_backup.backup)
app.command()(cli_backup.restore)
app.command()(cli_estimate.estimate)
app.command()(cli_export.export)

Model = Annotated[str, typer.Option("--model", help="A model directory, or a name to prepare.")]
DataDir = Annotated[Path | None, typer.Option(help="Files, jobs and the database.")]
DatabaseUrl = Annotated[str | None, typer.Option(help="An SQLAlchemy URL; SQLite in data_dir by default.")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[key=value]…", help="Config fields; values as JSON.")]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="127.0.0.1 by default; any other requires an API key.")] = None,
    port: Annotated[int | None, typer.Option(help="8000 by default.")] = None,
    model: Annotated[str | None, typer.Option(help="A model directory, or a name to prepare.")] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    engine_url: Annotated[
        list[str] | None, typer.Option(help="A vLLM server of the model; repeat for replicas. Default: in process.")
    ] = None,
) -> None:
    """Serve OpenAI's API over one frozen model. Every setting can be given as IRO_<NAME>: see iro_server/README.md."""
    from iro_server.api.app import check_keys, check_port
    from iro_server.api.app import serve as run_server

    settings = _settings(
        host=host, port=port, data_dir=data_dir, database_url=database_url, engine_urls=engine_url or None
    )
    check_keys(settings)
    check_port(settings)
    if model is not None:
        named = {"model_dir": model_dir(model), "model_name": model_name(model)}
        settings = settings.model_copy(update=named)
    run_server(settings)


@app.command()
def work(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Run the jobs of servers that share the data directory and the database, without serving requests."""
    from iro_server.jobs.standalone import work as run_jobs

    run_jobs(_settings(data_dir=data_dir, database_url=database_url))


@app.command()
def graders(
    host: Annotated[str | None, typer.Option(help="127.0.0.1 by default.")] = None,
    port: Annotated[int | None, typer.Option(help="8002 by default.")] = None,
) -> None:
    """Run python graders for servers and workers elsewhere, which send IRO_GRADER_SERVICE_KEY."""
    from iro_server.graders.service import ServiceSettings
    from iro_server.graders.service import serve as run_service

    run_service(settings_of_environment(ServiceSettings, host=host, port=port))


@app.command()
def health(
    worker: Annotated[
        bool, typer.Option("--worker", help="Check `iro work` on this machine instead of a server.")
    ] = False,
    graders: Annotated[bool, typer.Option("--graders", help="Check `iro graders` on this machine.")] = False,
    port: Annotated[int | None, typer.Option(help="8000 by default; 8002 with --graders.")] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Health probe: exit with status 0 if this machine's server, worker or graders are healthy."""
    from iro_server.jobs.health import graders_problem, server_problem, worker_problem

    if graders:
        if problem := graders_problem(port):
            _fail(problem, FAILED)
        return
    settings = _settings(port=port, data_dir=data_dir, database_url=database_url)
    if problem := (worker_problem if worker else server_problem)(settings):
        _fail(problem, FAILED)


@app.command()
@with_options_of(AlignmentOptions, "Alignment")
def align(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[TRAIN] GRADER [key=value]…",
            help="TRAIN: JSONL, Parquet or CSV, each row with messages or prompt; none with --dataset. "
            "GRADER: JSON, or a .py file with grade(sample, item). key=value: any config field; values as JSON.",
        ),
    ],
    validation: Annotated[
        Path | None, typer.Option(help="Format as TRAIN; by default rows of TRAIN are held out.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="A data set of the Hugging Face hub, or a local folder.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of --dataset, such as train[:1000]; train by default.")
    ] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column of --dataset with the prompts.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Continue the prompt column's texts, without a chat.")] = False,
    model: Model = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option(help="The run folder; an unfinished run in it continues.")] = Path("runs/align"),
    **options: Any,
) -> None:
    """Fit value functions that steer a model towards a grader's reward."""
    from iro_server.graders.parsing import parse_grader_of_job

    job = load_batch_job("align")
    files, overrides = arguments[: 1 if dataset else 2], arguments[1 if dataset else 2 :]
    if len(files) < (1 if dataset else 2):
        raise ValueError("align takes TRAIN and GRADER, or GRADER and --dataset")
    grader = read_grader(Path(files[-1]))
    if dataset is None:
        refuse_without_dataset(split, prompt_column, text)
        train = _existing(Path(files[0]))
    else:
        train = put_dataset(out, dataset, split, prompt_column, text)
    config = {"training_file": str(train), "grader": grader, **options, **_parse(overrides)}
    if validation is not None:
        config["validation_file"] = str(_existing(validation))
    parse_grader_of_job(config["grader"]).close()  # refused before the model is loaded
    directory = model_dir(model)
    config |= {"model_dir": str(directory), "model_name": model_name(model)}
    result = _execute(job, config, out)
    if not result.get("improved", True):
        console.print("The 95 % interval of its gain over the frozen model is not above 0.")
    console.print(f"Best: iteration {result['best_iteration']}. Try it: iro generate --values", end=" ")
    console.print(escape(result["best_checkpoint"]), '"…"', soft_wrap=True)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="A question to the model; - reads it from stdin.")],
    model: Model = DEFAULT_MODEL,
    values: Annotated[
        str | None,
        typer.Option(help="A value bundle, an iteration of an alignment run; or several: PATH=WEIGHT,PATH=WEIGHT."),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Continue the prompt unchanged, without a chat.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="Below 0.001: the same text every time.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="0: every token.")] = 0,
    seed: Annotated[int | None, typer.Option(min=-(2**63), max=2**63 - 1)] = None,
    beam_width: Annotated[int | None, typer.Option(help=f"{ALIGNED_SEARCH.beam_width} with values, else 1.")] = None,
    num_successors: Annotated[
        int | None, typer.Option(help=f"{ALIGNED_SEARCH.num_successors} with values, else 1.")
    ] = None,
    chunk_length: Annotated[
        int | None, typer.Option(help=f"{ALIGNED_SEARCH.chunk_length} with values, else all.")
    ] = None,
    selection: Annotated[str | None, typer.Option(help=f"{ALIGNED_SEARCH.selection} by default.")] = None,
    betas: Annotated[str | None, typer.Option(help="Comma-separated; default: the bundle's.")] = None,
    strength: Annotated[
        float | None, typer.Option(min=0, help="Of the bundle's tilt; 1 by default, then with a single row.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Colour each token by what it adds to the value.")] = False,
) -> None:
    """Print a completion, guided by the value functions of a bundle if one is given."""
    from iro_server.cli.generate import complete, explained, parse_values, search_defaults
    from iro_server.decoding.base import SearchParams
    from iro_server.engines.base import GREEDY_BELOW, SMALLEST_NUCLEUS, Sampling

    options: JsonObject = {"beam_width": beam_width, "num_successors": num_successors, "chunk_length": chunk_length}
    options |= {"selection": selection, "betas": betas.split(",") if betas else None, "strength": strength}
    bundles = parse_values(values) if values else {}
    defaults = search_defaults(bundles, options) if bundles else {}
    params = SearchParams.model_validate(
        defaults | {name: value for name, value in options.items() if value is not None}
    )
    if params.betas and len(bundles) != 1:
        raise ValueError("betas weigh the value functions of one bundle: --values PATH")
    if explain and values is None:
        raise ValueError("--explain colours tokens by the value functions of --values")
    prompt = sys.stdin.read() if prompt == "-" else prompt
    try:
        prompt.encode()
    except UnicodeEncodeError:  # what is no UTF-8 arrives as half surrogate pairs
        raise ValueError("the prompt is not UTF-8") from None
    temperature = temperature if temperature >= GREEDY_BELOW else 0.0
    sampling = Sampling(temperature, top_p=max(top_p, SMALLEST_NUCLEUS), top_k=top_k, seed=seed)
    completion = complete(model_dir(model), prompt, text, params, sampling, max_tokens, bundles)
    if explain:
        console.print(explained(completion))
    else:
        typer.echo(completion.text)


@app.command("list")
def list_jobs() -> None:
    """The installed batch jobs, which `iro run` runs."""
    table = Table("job", "what it does", "presets", box=None)
    for name in sorted(batch_jobs().names):
        try:
            job = load_batch_job(name)
        except JobUnavailable as error:
            table.add_row(name, escape(str(error)), "")
        else:
            table.add_row(job.name, job.summary, ", ".join(job.presets))
    console.print(table)


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="One of `iro list`.")],
    overrides: Settings = None,
    preset: Annotated[str | None, typer.Option(help="smoke, paper, …: see `iro list`.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, run in sequence, each in a separate folder.")] = 1,
    out: Annotated[Path | None, typer.Option(help="The run folder: runs/NAME, or runs/NAME-PRESET.")] = None,
) -> None:
    """Run a batch job, or continue an unfinished run; writes result.json, metrics.jsonl and figures/.

    Exit status 1 if a check of the preset smoke does not hold; elsewhere that is a finding.
    """
    job = load_batch_job(name)
    if preset is not None and preset not in job.presets:
        raise ValueError(f"{name} has no preset {preset!r}, only: {', '.join(job.presets) or 'none'}")
    config = {**(job.presets[preset] if preset else {}), **_parse(overrides or [])}
    out = out or Path("runs") / (f"{name}-{preset}" if preset else name)
    result = _execute(job, config, out, seeds)
    if preset == "smoke" and not all(check["holds"] for check in result["checks"]):
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the report and the figure go.")] = Path("runs/demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="One iteration on a few prompts: shows that it works.")
    ] = False,
) -> None:
    """Align a model to the sentiment of film reviews, through the API, and compare (12 minutes on two idle cores)."""
    try:
        from iro_server.cli.demo.run import QUICK, DemoSize, run_demo
    except ModuleNotFoundError as error:
        raise MissingPackage(f"{error.name} is not installed: pip install 'iro-align[demo]'") from error

    run_demo(out, QUICK if quick else DemoSize())


def _execute(job: BatchJob[BaseModel], config: JsonObject, out: Path, seeds: int = 1) -> JsonObject:
    """Run the job with its events on the terminal; Ctrl-C leaves a run that the same command goes on with."""
    styles = {"warn": "yellow", "error": "red"}

    def show(event: JobEvent) -> None:
        if event["message"]:
            console.print(escape(event["message"]), style=styles.get(event["level"]))

    try:
        valid = job.Config.model_validate(config)
    except ValidationError as error:
        raise ValueError(_mistakes(error, job.Config.model_fields)) from None
    try:
        result = job.execute(valid, out, seeds=seeds, on_event=show)
    except KeyboardInterrupt:
        typer.echo(f"\nStopped. The same command goes on from {out}.", err=True)
        raise typer.Exit(130) from None
    for check in result["checks"]:
        mark = "[green]✓[/]" if check["holds"] else "[red]✗[/]"
        console.print(f"{mark} {escape(check['name'])}: {escape(str(check['got']))} ({escape(str(check['expected']))})")
    console.print(f"Results: {escape(str(out / 'result.json'))}", soft_wrap=True)
    return result


def _settings(**options: Any) -> ServerSettings:
    """The server's, from its environment where an option is None; warns of variables that are none of its."""
    from iro_server.settings import Settings as ServerSettings

    for warning in misspelled_settings(os.environ, ServerSettings.model_fields):
        typer.echo(f"Warning: {warning}", err=True)
    return settings_of_environment(ServerSettings, **options)


def _parse(pairs: Sequence[str]) -> JsonObject:
    """key=value pairs; a value that is not JSON is a string."""
    config = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair!r} is not of the form key=value")
        config[key] = parse_value(value)
    return config


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path.resolve()
