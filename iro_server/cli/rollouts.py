"""``iro rollouts``: the graded completions of an alignment job, for other training libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from iro_server.alignment.entry import load_alignment_job
from iro_server.cli.keys import DataDir
from iro_server.cli.run_folder import alignment_folder

if TYPE_CHECKING:
    from datasets import Dataset

app = typer.Typer(no_args_is_help=True, help="Sampled and graded completions of a job.")

Format = Literal["arrow", "parquet", "jsonl"]


@app.command()
def export(
    job: Annotated[str, typer.Argument(help="A job of the server's data directory, or a run folder.")],
    out: Annotated[Path, typer.Option(help="A folder for arrow, else a file; it must not exist.")],
    format: Annotated[Format, typer.Option(help="arrow: a folder that `datasets.load_from_disk` reads.")] = "arrow",
    data_dir: DataDir = None,
) -> None:
    """Write prompts, completions and rewards in TRL's prompt-completion format, which its SFTTrainer reads directly."""
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    if out.exists():
        raise FileExistsError(f"{out} exists")
    rollouts = load_alignment_job().export(_run_folder(job, data_dir))
    if format == "jsonl":
        _write_jsonl(rollouts, out)
    else:
        write = {"arrow": rollouts.save_to_disk, "parquet": rollouts.to_parquet}[format]
        write(str(out))
    typer.echo(f"{len(rollouts)} completions: {out}")


def _write_jsonl(rollouts: Dataset, out: Path) -> None:
    """With all digits of each number, which ``Dataset.to_json`` rounds. Compressed where the name ends in .gz."""
    import fsspec

    with fsspec.open(str(out), "w", compression="infer") as file:
        file.writelines(json.dumps(row) + "\n" for row in rollouts)


def _run_folder(job: str, data_dir: Path | None) -> Path:
    folder = alignment_folder(job, data_dir)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{job}: neither a run folder nor a job that has begun, in {folder}; "
            "a server with another data directory: --data-dir"
        )
    return folder
