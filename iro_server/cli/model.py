"""``iro model``: the frozen model, fetched once and looked at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from iro_server.engines.prepare import DEFAULT_MODEL

app = typer.Typer(no_args_is_help=True, help="The frozen model.")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument()] = DEFAULT_MODEL,
    out: Annotated[Path | None, typer.Option(help="Destination; a cache directory by default.")] = None,
) -> None:
    """Fetch a model once, and print its directory."""
    from iro_server.engines.prepare import prepare_model

    typer.echo(prepare_model(name, out))


@app.command()
def info(model: Annotated[str, typer.Argument(help="A model directory or name.")] = DEFAULT_MODEL) -> None:
    """Print the two hashes that identify a model; value functions store both."""
    from transformers import AutoConfig

    from iro_server.engines.describe import Description

    directory = model_dir(model)
    info = Description.of_directory(directory).info
    config = AutoConfig.from_pretrained(directory)
    facts = {
        "directory": str(directory),
        "architecture": ", ".join(config.architectures or []),
        "layers": info.num_layers,
        "hidden_size": info.hidden_size,
        "max_length": info.max_length,
        "vocabulary": config.get_text_config(decoder=True).vocab_size,
        "model_hash": info.model_hash,
        "template_hash": info.template_hash,
    }
    for name, value in facts.items():
        typer.echo(f"{name:14} {value}")


@app.command()
def verify(model: Annotated[str, typer.Argument(help="A model directory or name.")] = DEFAULT_MODEL) -> None:
    """Read all weights of a model and compare their hash with that of the prepared model.

    Starts of the server trust a hash of earlier while no file's size, time or inode has changed.
    """
    from iro_server.engines.prepare import verify_model

    typer.echo(f"{verify_model(model_dir(model))}  unchanged")


@app.command()
def prune(
    out: Annotated[Path, typer.Argument(help="A new directory.")],
    texts: Annotated[Path, typer.Argument(help="File of typical texts, one on each line.")],
    keep: Annotated[float, typer.Option(help="Share of each feed-forward layer's neurons to keep.")],
    model: Annotated[str, typer.Option(help="A model directory or name.")] = DEFAULT_MODEL,
) -> None:
    """Write a smaller, faster and less accurate model: keep the most active neurons of each layer."""
    from iro_server.engines.prune import prune_model

    typer.echo(prune_model(model_dir(model), out, keep, texts.read_text().splitlines()))


def model_dir(model: str) -> Path:
    """A directory as it is given, else the name of a model to prepare."""
    from iro_server.engines.prepare import prepare_model

    return Path(model).resolve() if Path(model).is_dir() else prepare_model(model)


def model_name(model: str) -> str:
    """What a model is called: its directory's name, as it is given, or the last part of its own."""
    return Path(os.path.abspath(model)).name
