"""What the database keeps of a job while several write."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait

from sqlalchemy import select

from iro_server.jobs import records
from iro_server.settings import Settings
from iro_server.store.database import Sessions, open_database
from iro_server.store.tables import Event, Job


def test_a_jobs_events_are_committed_in_the_order_in_which_a_stream_reads_them(tmp_path, new_database):
    """A stream that had read the worker's event would pass over an estimate's earlier one, committed later."""
    sessions = open_database(Settings(data_dir=tmp_path, database_url=new_database("postgresql")))
    rest = {"model": "m", "training_file": "f", "seed": 1, "method": {}, "config": {}, "model_name": "m"}
    with sessions.begin() as session:
        session.add(Job(id="ftjob-1", status="running", attempt=1, **rest))
    with ThreadPoolExecutor() as threads:
        with sessions.begin() as session:
            records.add_event(session, "ftjob-1", "Estimate")
            session.flush()
            worker = threads.submit(add_event, sessions, "Step 1/1")
            assert not wait([worker], timeout=0.3).done
        worker.result()
    with sessions() as session:
        assert session.scalars(select(Event.message).order_by(Event.seq)).all() == ["Estimate", "Step 1/1"]


def add_event(sessions: Sessions, message: str) -> None:
    with sessions.begin() as session:
        records.add_event(session, "ftjob-1", message)
