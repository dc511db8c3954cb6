"""``iro export``: an aligned model's tilt as other servers load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from iro_server import JsonObject
from iro_server.cli.keys import DataDir
from iro_server.cli.model import model_dir
from iro_server.cli.run_folder import alignment_folder
from iro_server.engines.prepare import DEFAULT_MODEL
from iro_server.engines.vllm_server import MAX_RANK

if TYPE_CHECKING:
    from value_heads.tilt import Tilt

Format = Literal["peft", "vllm", "logit_bias"]
ENTRIES = 300  # that OpenAI's API takes
RMS = "root mean square, in logits"
UNPROVEN = "the 95 % interval of the job's gain is not above 0: a server answers as the frozen model, without this tilt"


def export(
    values: Annotated[str, typer.Argument(help="A value bundle, a run folder, or a job of the data directory.")],
    out: Annotated[Path, typer.Option(help="A folder, for logit_bias a JSON file; it must not exist.")],
    format: Annotated[
        Format, typer.Option(help="peft: an adapter of the output head. vllm: one without a bias. logit_bias: JSON.")
    ] = "peft",
    model: Annotated[str, typer.Option("--model", help="A model directory, or a name to prepare.")] = DEFAULT_MODEL,
    entries: Annotated[
        int | None,
        typer.Option(min=1, help=f"Of logit_bias, the strongest; {ENTRIES}, which OpenAI takes.", show_default=False),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Of an adapter, at most; the largest singular values are kept. vllm: {MAX_RANK}, which `make vllm` "
            "admits, its bias counted in; peft: all.",
            show_default=False,
        ),
    ] = None,
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
    from value_heads import load_bundle
    from value_heads.tilt import EXPORTABLE_PARTS, fold_tilts

    if out.exists():
        raise FileExistsError(f"{out} exists")
    if format == "logit_bias" and rank is not None:
        raise ValueError("logit_bias has no ranks: leave --rank out, or take --entries")
    if format != "logit_bias" and entries is not None:
        raise ValueError(f"{format} has no entries: leave --entries out, or take --rank")
    folder = alignment_folder(values, data_dir)
    bundle = _bundle(folder, values)
    directory = model_dir(model)
    info = Description.of_directory(directory).info
    stack = load_bundle(bundle, model_hash=info.model_hash, template_hash=info.template_hash, backbone_dir=directory)
    tilt = stack.tilt
    if tilt is None:
        raise ValueError(f"{bundle} has no tilt: its values only rank what the model proposes, which no adapter does")
    if tilt.parts - EXPORTABLE_PARTS and not without_words:
        raise ValueError(
            "this tilt depends on the prompt's and the response's words or length, which no adapter holds: "
            "serve it by Iro, export the rest by --without-words, or start a job with tilt=exportable"
        )
    unsharpened = fold_tilts([tilt], [tilt.temperature()])
    if format == "logit_bias":
        _write_logit_bias(unsharpened, entries or ENTRIES, out)
    elif format == "vllm" and (tilt.direction is None or tilt.direction_error is None):
        raise ValueError(f"{bundle} is of an earlier format, without the direction that a bias needs: align anew")
    else:
        _write_adapter(unsharpened, format, rank, directory, model, out)
    if _is_unproven(folder):
        typer.echo(f"Warning: {UNPROVEN}", err=True)
    if told := _temperature(folder, tilt):
        typer.echo(told)
    typer.echo(out)


def _write_adapter(tilt: Tilt, format: Format, rank: int | None, directory: Path, model: str, out: Path) -> None:
    """Write an adapter of the output head of the model in ``directory``; print the errors of ranks that are left out,
    and for vLLM of its bias."""
    from iro_server.engines.output_head import read_output_head
    from value_heads.tilt_export import compressed, head_adapter, rms_additions, without_static, write_peft

    head = read_output_head(directory)
    exact = head_adapter(tilt, head.weight_VD)
    ranks = len(exact.lora_A)
    if format == "vllm":
        rank = (rank or MAX_RANK) - 1  # one is the bias
        if rank == 0 and ranks:
            raise ValueError("--rank 1 is the bias alone, and the tilt reads the model's state: take 2 or more")
    adapter, missing = compressed(exact, ranks if rank is None else rank)
    if missing:
        error = missing * rms_additions(exact, head.state_length)
        typer.echo(f"{ranks - len(adapter.lora_A)} of the ranks are left out: off by {error:.4f} ({RMS})")
    if format == "peft":
        write_peft(adapter, out, model, head.name)
        return
    assert tilt.direction is not None and tilt.direction_error is not None
    write_peft(without_static(adapter, tilt.direction), out, model, head.name)
    error = float(tilt.direction_error) * float(adapter.static.square().mean().sqrt())
    typer.echo(f"The bias is one of the ranks: off by {error:.4f} ({RMS})")


def _write_logit_bias(tilt: Tilt, entries: int, out: Path) -> None:
    """Write the strongest entries of what the tilt adds at the mean state, and print what is left out."""
    from value_heads.tilt_export import bias_at_mean_state, logit_bias, stop_gate_reads_state

    static = bias_at_mean_state(tilt)
    bias = logit_bias(static, entries)
    if not bias:
        raise ValueError("the tilt's bias has no entries, so that logit_bias would leave the model as it is")
    out.write_text(json.dumps(bias, indent=1) + "\n")
    squares = sum(value**2 for value in bias.values()) / float(static.double().square().sum())
    summary = f"{len(bias):,} of {int(static.count_nonzero()):,} entries ({squares:.0%} of the bias's squares)"
    if "states" in tilt.parts:
        summary += "; the part that reads the model's state is left out"
    if stop_gate_reads_state(tilt):
        summary += ", which adds 0 at the mean state but for the stop tokens"
    typer.echo(summary)


def _temperature(folder: Path, tilt: Tilt) -> str | None:
    """What to sample at so that the files draw as the job's model does by default; None for a temperature of 1.

    The tilt of a job is of q ∝ exp((logits + A) / temperature) at the job's temperature, which a bundle does not hold.
    """
    temperature, of_job = tilt.temperature(), " times the job's"
    if (folder / "result.json").is_file():
        temperature, of_job = temperature * _result(folder)["config"].get("temperature", 1.0), ""
    if temperature == 1:
        return None
    reason = "the tilt sharpens the model, which no file holds" if tilt.sharpness else "it was fitted at that"
    return f"Sample at a temperature of {temperature:.4g}{of_job}: {reason}"


def _bundle(folder: Path, values: str) -> Path:
    """The folder of a value bundle: itself, or the best one of a run, also of a run folder that was moved."""
    if (folder / "manifest.json").is_file():
        return folder
    if not (folder / "result.json").is_file():
        raise FileNotFoundError(
            f"{values}: neither a value bundle nor a run that has ended, in {folder}; "
            "a server with another data directory: --data-dir"
        )
    result = _result(folder)
    if result["best_checkpoint"] is None:
        raise ValueError(f"{values} ended without an aligned model")
    in_folder = folder / "iterations" / str(result.get("best_iteration"))
    return in_folder if (in_folder / "manifest.json").is_file() else Path(result["best_checkpoint"])


def _is_unproven(folder: Path) -> bool:
    """Whether the run in ``folder`` has shown no gain, so that a server answers as the frozen model for it."""
    result = _result(folder) if (folder / "result.json").is_file() else {}
    return not (result.get("improved", True) or result["config"].get("keep_unproven"))


def _result(folder: Path) -> JsonObject:
    result: JsonObject = json.loads((folder / "result.json").read_text())
    return result
