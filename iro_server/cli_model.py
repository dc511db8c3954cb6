"""``iro model``: the frozen model, fetched once and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iro_server.engines.prepare import DEFAULT_MODEL

app = typer.Typer(no_args_is_help=True, help="The frozen model.")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument()] = DEFAULT_MODEL,
    out: Annotated[Path | None, typer.Option(help="Where to; a cache directory by default.")] = None,
) -> None:
    """Fetch a model once, convert it to fp32, and print its directory."""
    from iro_server.engines.prepare import prepare_model

    typer.echo(prepare_model(name, out))


@app.command()
def info(model: Annotated[str, typer.Argument(help="A model directory or name.")] = DEFAULT_MODEL) -> None:
    """What identifies a model: value functions are tied to both hashes."""
    from transformers import AutoConfig, AutoTokenizer

    from iro_server.engines.prepare import model_hash, template_hash

    directory = model_dir(model)
    config = AutoConfig.from_pretrained(directory)
    facts = {
        "directory": str(directory),
        "architecture": ", ".join(config.architectures or []),
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "max_length": config.max_position_embeddings,
        "vocabulary": config.vocab_size,
        "model_hash": model_hash(directory),
        "template_hash": template_hash(AutoTokenizer.from_pretrained(directory)),
    }
    for name, value in facts.items():
        typer.echo(f"{name:14} {value}")


@app.command()
def prune(
    out: Annotated[Path, typer.Argument(help="A directory to be made.")],
    keep: Annotated[float, typer.Option(help="Share of each feed-forward layer's neurons that stay.")],
    model: Annotated[str, typer.Option(help="A model directory or name.")] = DEFAULT_MODEL,
) -> None:
    """Write a smaller model: of each feed-forward layer, only the neurons with the largest weights."""
    from iro_server.engines.prune import prune_model

    typer.echo(prune_model(model_dir(model), out, keep))


def model_dir(model: str) -> Path:
    """A directory as it is given, else the name of a model to prepare."""
    from iro_server.engines.prepare import prepare_model

    return Path(model).resolve() if Path(model).is_dir() else prepare_model(model)
