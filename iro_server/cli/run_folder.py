"""The run folder of an alignment job, by its path or by the job's id."""

from __future__ import annotations

import json
from pathlib import Path

from iro_server.cli.keys import settings_of


def alignment_folder(name: str, data_dir: Path | None) -> Path:
    """The folder ``name`` where there is one, else the run folder of the server's job ``name``. ValueError where it
    holds a run of another job, or of several seeds."""
    folder = Path(name) if Path(name).is_dir() else settings_of(data_dir, None).job_dir(name) / "run"
    records = [folder / "config.json", folder / "result.json", *folder.glob("seed-*/config.json")]
    record_file = next((path for path in records if path.is_file()), None)
    if record_file is None or (folder / "manifest.json").is_file():  # a value bundle, or no run
        return folder
    record = json.loads(record_file.read_text())
    if "job" not in record:
        raise ValueError(f"{name} is no run of align")
    if record["job"] != "align":
        raise ValueError(f"{name} is a run of {record['job']}, not of align")
    if record_file.parent != folder or "per_seed" in record:
        raise ValueError(f"{name} is a run of several seeds; name the folder of one: {folder}/seed-…")
    return folder
