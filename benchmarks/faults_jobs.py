"""Jobs whose workers and servers are killed, at moments that every part of a job gets its share of."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import openai

from benchmarks.faults_ledger import Phase
from benchmarks.faults_results import Reference, create, differences, outcome, run_folder, upload_rows
from benchmarks.faults_server import PATIENCE, Server, Stuck, ended, insist, kill, workers
from benchmarks.faults_watch import MOMENTS, Watch
from iro_server import JsonObject
from iro_server.jobs import lock

OPEN = 3  # jobs at once: each of two servers runs one, and one waits
TARGETS = {"worker": 0.55, "a server": 0.2, "all servers": 0.1, "all servers and workers": 0.15}
AWAIT = 10.0  # seconds for the moment that was asked for to come
PAUSES = 0.2  # a kill, as the probability of one


class Jobs:
    """Jobs under way on several servers over one database; ``observed`` is what a client read of them on the way."""

    def __init__(
        self, servers: Sequence[Server], phase: Phase, references: Mapping[str, Reference], rng: random.Random
    ) -> None:
        self.servers, self.phase, self.references, self.rng = servers, phase, references, rng
        self.training_file = insist(servers, upload_rows)
        self.watches: dict[str, Watch] = {}  # of the jobs that have not ended yet
        self.observed: dict[str, dict[str, JsonObject]] = {}
        self.resume_at: dict[str, float] = {}
        self.stopping = threading.Event()

    def open_some(self) -> None:
        for id in [id for id in self.watches if self._status(id) in ("succeeded", "failed", "cancelled")]:
            del self.watches[id]
        while len(self.watches) < OPEN:
            recipe = self.rng.choice(list(self.references))
            seed = self.references[recipe].seed
            id = insist(self.servers, lambda client: create(client, recipe, seed, self.training_file))  # noqa: B023
            self.phase.acknowledge("jobs")
            self.observed[id] = {}
            self.watches[id] = Watch(run_folder(self.servers[0], id).parent, self.references[recipe].steps)

    def _status(self, id: str) -> str:
        return insist(self.servers, lambda client: client.fine_tuning.jobs.retrieve(id)).status

    def strike(self, target: str) -> None:
        """Kill ``target`` once a job is at a moment drawn at random; whatever was killed of servers starts again."""
        insist(self.servers, lambda client: client.models.list())
        watch = self.await_moment(self.rng.choice(MOMENTS))
        while lock.holder(watch.folder) != watch.pid:  # it came to its end meanwhile
            watch = self.await_moment(self.rng.choice(MOMENTS))
        if target == "worker":
            kill(watch.pid)
        else:
            struck = [self.rng.choice(self.servers)] if target == "a server" else self.servers
            for server in struck:
                server.kill()
            if target == "all servers and workers":
                for pid in workers(self.servers[0].settings.data_dir).values():
                    kill(pid)
        moment = watch.moment()
        self.phase.killed(target, moment)
        for server in self.servers:
            if server.process is None:
                server.start()

    def await_moment(self, wanted: str) -> Watch:
        """A job with a worker that is at the moment or, where none comes there soon, at another."""
        since = time.monotonic()
        while time.monotonic() - since < PATIENCE:
            self.resume_due()
            for watch in self.watches.values():
                watch.update()
            running = [watch for watch in self.watches.values() if watch.pid]
            looked = time.monotonic()
            while time.monotonic() - looked < 0.2:
                for watch in running:
                    if watch.moment() == wanted:
                        time.sleep(watch.within(wanted, self.rng))
                        return watch
                time.sleep(0.0005)
            if running and time.monotonic() - since > AWAIT:
                return self.rng.choice(running)
            self.open_some()
        raise Stuck("no job has a worker")

    def maybe_pause(self) -> None:
        id = self.rng.choice(list(self.watches))
        if id in self.resume_at or self.rng.random() > PAUSES:
            return
        try:
            insist(self.servers, lambda client: client.fine_tuning.jobs.pause(id))
        except openai.BadRequestError:
            return  # it has ended, or was paused by a call whose answer was cut off
        self.phase.acknowledge("pauses")
        self.resume_at[id] = time.monotonic() + self.rng.uniform(0, 4)

    def resume_due(self, everyone: bool = False) -> None:
        for id, due in list(self.resume_at.items()):
            if everyone or time.monotonic() > due:
                if (status := self._status(id)) != "paused":
                    self.phase.fault("lost", f"{id} was paused and is {status}")
                try:
                    insist(self.servers, lambda client: client.fine_tuning.jobs.resume(id))  # noqa: B023
                    self.phase.acknowledge("resumptions")
                except openai.BadRequestError:
                    self.phase.note("resumptions that a cut-off call had done")
                del self.resume_at[id]

    def observe(self) -> None:
        """Read events and checkpoints as they come, and look for steps that are computed again."""
        while not self.stopping.wait(0.3):
            for id, watch in list(self.watches.items()):
                for item in self.items(id):
                    if item["id"] not in self.observed[id]:
                        self.observed[id][item["id"]] = item
                        self.phase.acknowledge("events" if item["object"].endswith("event") else "checkpoints")
                for step in watch.repeated():
                    self.phase.fault("repeated", f"{id} computed {step} again")

    def items(self, id: str) -> list[JsonObject]:
        def read(client: openai.OpenAI) -> list[JsonObject]:
            jobs = client.fine_tuning.jobs
            return [*map(_plain, jobs.list_events(id, limit=100)), *map(_plain, jobs.checkpoints.list(id))]

        return insist(self.servers, read)

    def judge(self, id: str, recipe: str) -> None:
        """Whether the job comes to its end, with all that was seen of it, each step once, and the same result."""
        self.phase.jobs += 1
        try:
            job = ended(self.servers, id)
        except Stuck as error:
            self.phase.fault("stuck", str(error))
            return
        there = {item["id"]: item for item in self.items(id)}
        for item_id, item in self.observed.get(id, {}).items():
            if there.get(item_id) != item:
                self.phase.fault("lost", f"{item['object']} {item_id} of {id} was {item}, is {there.get(item_id)}")
        if job.status != "succeeded":
            self.phase.fault("unequal", f"{id} ({recipe}) {job.status}: {job.error}")
            return
        metric_steps = Counter(each["data"]["step"] for each in there.values() if each.get("type") == "metrics")
        saved = Counter(each["step_number"] for each in there.values() if "step_number" in each)
        for kind, counts in (("metrics", metric_steps), ("checkpoint", saved)):
            for step in (step for step, count in counts.items() if count > 1):
                self.phase.fault("repeated", f"{kind} of step {step} of {id}")
        started = sum(each.get("message") == "Fine-tuning job started" for each in there.values())
        self.phase.expect(started == 1, f"{id} was started {started} times")
        expected = self.references[recipe].outcome
        self.phase.expect(
            set(metric_steps) == {row["step"] for row in expected["metrics.jsonl"]}, f"{id}: metrics of {metric_steps}"
        )
        for difference in differences(expected, outcome(self.servers, id)):
            self.phase.fault("unequal", f"{difference} of {id} ({recipe})")


def _plain(item: Any) -> JsonObject:
    return item.to_dict()


def kill_during_jobs(
    servers: Sequence[Server], phase: Phase, kills: int, seed: int, references: Mapping[str, Reference]
) -> None:
    """Open jobs and strike ``kills`` times; then all of them, answered or not, must end as their references did."""
    rng = random.Random(f"{seed}-jobs")
    jobs = Jobs(servers, phase, references, rng)
    observer = threading.Thread(target=jobs.observe, daemon=True)
    observer.start()
    targets = list(TARGETS)
    try:
        for _ in range(kills):
            jobs.open_some()
            jobs.maybe_pause()
            jobs.strike(rng.choices(targets, list(TARGETS.values()))[0])
        jobs.resume_due(everyone=True)
        done = {reference.job_id for reference in references.values()}
        there = insist(servers, lambda client: list(client.fine_tuning.jobs.list(limit=100)))
        recipes = {job.id: job.metadata["recipe"] for job in there if job.id not in done and job.metadata}
        for id in jobs.observed.keys() - recipes.keys():
            phase.fault("lost", f"job {id}")
        for id, recipe in recipes.items():
            jobs.judge(id, recipe)
    finally:
        jobs.stopping.set()
        observer.join()
