"""``iro export``: an aligned model's tilt as other servers load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from iro_server.cli.keys import DataDir, settings_of
from iro_server.cli.model import model_dir
from iro_server.engines.prepare import DEFAULT_MODEL

Format = Literal["peft", "vllm", "logit_bias"]
ENTRIES = 300  # that OpenAI's API takes


def export(
    values: Annotated[str, typer.Argument(help="A value bundle, a run folder, or a job of the data directory.")],
    out: Annotated[Path, typer.Option(help="A folder, for logit_bias a JSON file; it must not exist.")],
    format: Annotated[
        Format, typer.Option(help="peft: an adapter of the output head. vllm: one without a bias. logit_bias: JSON.")
    ] = "peft",
    model: Annotated[str, typer.Option("--model", help="A model directory, or a name to prepare.")] = DEFAULT_MODEL,
    entries: Annotated[int, typer.Option(min=1, help="Of logit_bias, the strongest; OpenAI takes 300.")] = ENTRIES,
    without_words: Annotated[
        bool,
        typer.Option(
            "--without-words", help="Leave out what depends on the prompt's and the response's words or length."
        ),
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Write the tilt that an alignment job fitted, for servers that are not Iro."""
    from iro_server.engines.describe import Description
    from iro_server.engines.output_head import read_output_head
    from value_heads import load_bundle
    from value_heads.tilt import fold_tilts
    from value_heads.tilt_export import head_adapter, logit_bias, without_static, write_peft

    if out.exists():
        raise FileExistsError(f"{out} exists")
    directory = model_dir(model)
    info = Description.of_directory(directory).info
    bundle = _bundle(values, data_dir)
    stack = load_bundle(bundle, model_hash=info.model_hash, template_hash=info.template_hash, backbone_dir=directory)
    tilt = stack.tilt
    if tilt is None:
        raise ValueError(f"{bundle} has no tilt: its values only rank what the model proposes, which no adapter does")
    if tilt.parts & {"words", "lengths"} and not without_words:
        raise ValueError(
            "this tilt depends on the prompt's and the response's words or length, which no adapter holds: "
            "serve it by Iro, or export the rest by --without-words"
        )
    head, temperature = read_output_head(directory), tilt.temperature()
    adapter = head_adapter(fold_tilts([tilt], [temperature]), head.weight_VD)
    if format == "logit_bias":
        out.write_text(json.dumps(logit_bias(adapter.static, entries), indent=1) + "\n")
    elif format == "peft":
        write_peft(adapter, out, model, head.name)
    else:
        if tilt.direction is None or tilt.direction_error is None:
            raise ValueError(f"{bundle} is of an earlier format, without the direction that a bias needs: align anew")
        write_peft(without_static(adapter, tilt.direction), out, model, head.name)
        error = float(tilt.direction_error) * float(adapter.static.square().mean().sqrt())
        typer.echo(f"The bias is one of the ranks: off by {error:.4f} (root mean square, in logits)")
    if tilt.sharpness:
        typer.echo(f"Sample at a temperature of {temperature:.4g}: the tilt sharpens the model, which no file holds")
    typer.echo(out)


def _bundle(values: str, data_dir: Path | None) -> Path:
    """The folder of a value bundle: itself, or the best one of a run."""
    folder = Path(values) if Path(values).is_dir() else settings_of(data_dir, None).job_dir(values) / "run"
    if (folder / "manifest.json").is_file():
        return folder
    if not (folder / "result.json").is_file():
        raise FileNotFoundError(
            f"{values}: neither a value bundle nor a run that has ended, in {folder}; "
            "a server with another data directory: --data-dir"
        )
    best = json.loads((folder / "result.json").read_text())["best_checkpoint"]
    if best is None:
        raise ValueError(f"{values} ended without an aligned model")
    return Path(best)
