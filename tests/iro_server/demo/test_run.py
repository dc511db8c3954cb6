"""What the demo asks of the models that a job leaves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from rich.console import Console

from iro_server.cli.demo.run import FINALS, ONE_ROW, DemoSize, continuations
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.store.database import find, open_database
from iro_server.store.tables import Model
from tests.iro_server.api.serving import settings_for
from tests.iro_server.api.tilted import add_checkpoint, serving_tilted

SEARCHES = (
    {"strength": 1.0},
    {"strength": 1.0, "num_successors": 4, "chunk_length": 4},
    {"strength": 1.0, "beam_width": 2, "num_successors": 8, "chunk_length": 4},
)


def test_each_iteration_has_sixteen_finals_however_many_rows_its_job_serves(
    tmp_path: Path, small_engine: EmbeddedEngine
) -> None:
    settings = settings_for(tmp_path)
    with serving_tilted(settings, small_engine) as client:
        for step, search in enumerate(SEARCHES, start=1):
            add_checkpoint(settings, "tilted", step, {"search": search})
        with open_database(settings).begin() as session:
            job_id = find(session, Model, "tilted").job_id
        job = SimpleNamespace(id=job_id, model=client.models.list().data[0].id, fine_tuned_model="tilted")
        size = DemoSize(max_tokens=8)
        written = dict(continuations(client, job, ["a river", "a lamp"], size, Console(quiet=True)))
    counts = {label: [len(finals) for finals in groups] for label, groups in written.items()}
    iterations = {f"IRO-{step}": [FINALS] * 2 for step in (1, 2, 3)}
    assert {label: counts[label] for label in iterations} == iterations
    assert counts["base"] == [FINALS] * 2 and counts[ONE_ROW] == [1] * 2
