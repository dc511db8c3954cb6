"""The server: OpenAI's API over one frozen model, and the supervisor of its jobs."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from functools import cache
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI
from sqlalchemy import make_url
from starlette.routing import BaseRoute

from iro_server.access.audit import cut_access_log
from iro_server.access.key_requirement import KeyRequirement
from iro_server.api import (
    batches,
    chat,
    completions,
    embeddings,
    errors,
    estimates,
    eval_runs,
    evals,
    files,
    fine_tuning,
    graders,
    health,
    job_events,
    job_runs,
    metrics,
    models,
    page,
    permissions,
    responses,
    stored_completions,
    uploads,
    webhooks,
)
from iro_server.api.access import Access
from iro_server.api.connections import AcceptErrors, IdleConnections, max_idle_connections, raise_descriptor_limit
from iro_server.api.context import Context
from iro_server.api.limits import BodyLimit, BodyLimits
from iro_server.api.receive_timeout import ReceiveTimeout
from iro_server.api.registry import ModelRegistry
from iro_server.api.respond import AsciiJSON
from iro_server.api.send_timeout import SendTimeout, UnreadConnections
from iro_server.concurrency.admission import Admission
from iro_server.concurrency.deadlines import Deadlines
from iro_server.concurrency.fair_executor import FairExecutor
from iro_server.concurrency.fair_slots import FairSlots
from iro_server.engines.base import Engine
from iro_server.engines.grammars import SchemaRefused, grammars_of
from iro_server.engines.opening import open_engine
from iro_server.engines.prepare import prepare_model
from iro_server.graders import cgroup
from iro_server.graders.sandbox import isolation_problem
from iro_server.jobs.background import Background
from iro_server.jobs.batches.running import MOST_TRIES, BatchExecutor
from iro_server.jobs.estimates.running import EstimateExecutor
from iro_server.jobs.evals.running import RunExecutor
from iro_server.jobs.job_runs.running import JobRunExecutor
from iro_server.jobs.leftovers import discard_leftovers
from iro_server.jobs.supervisor import Supervisor
from iro_server.jobs.validation import Validation
from iro_server.jobs.webhook_sender import Sender, lookup_executor
from iro_server.settings import Settings, is_loopback
from iro_server.store import keys
from iro_server.store.database import open_database
from iro_server.store.sweep import sweep, sweep_hourly
from iro_server.store.tables import Batch, Estimate, EvalRun, JobRun
from iro_server.telemetry import logs, tracing
from value_heads.scoring import CACHES

log = logging.getLogger("iro")
ENDING = 5  # seconds for errors and databases, after the drain
IDLE_TICKS = 10  # of uvicorn, ten a second, from one look at idle connections to the next
CLOSE_EVERY = 0.1  # seconds, while the server stops
KEEP_ALIVE = 75  # seconds of an idle connection: longer than a client keeps one, so that none is closed under a request


def create_app(settings: Settings, engine: Engine) -> FastAPI:
    """The application. While it runs it starts and watches jobs; ``engine`` stays the caller's to close."""
    sessions = open_database(settings)
    internal_key = keys.internal(settings.data_dir)
    keys_required = KeyRequirement(settings, sessions)
    grader_environment = settings.grader_environment(internal_key, keys_required)
    registry = ModelRegistry(
        engine, sessions, settings.model_dir, grader_environment, settings.loaded_models, settings.model_idle
    )

    grading = FairExecutor("grading", settings.grading_threads, settings.grading_per_project, settings.grading_waiting)
    lookups = lookup_executor()
    schemas = FairExecutor("schemas", threads=2, per_project=1, max_waiting=64, max_seconds=30)
    # Models run one at a time; the second thread tokenises another project's texts meanwhile.
    embedding = FairExecutor("embedding", threads=2, per_project=1, max_waiting=settings.max_waiting)

    def private_webhooks() -> bool:
        return settings.webhooks_inside(keys_required())

    @asynccontextmanager
    async def supervised(_: FastAPI) -> AsyncIterator[None]:
        supervisor = Supervisor(settings, sessions, grader_environment)
        sender = Sender(sessions, supervisor.stopping, private_webhooks, lookups)
        sweeping = sweep_hourly((sweep, discard_leftovers), settings, sessions, supervisor.stopping)
        validating = Validation(settings, sessions, grader_environment, engine).run(supervisor.stopping)
        idle = registry.sweep(supervisor.stopping)
        evaluating = Background(
            settings, sessions, EvalRun, RunExecutor(sessions, grader_environment).execute, settings.eval_concurrency
        ).run(supervisor.stopping)
        estimator = EstimateExecutor(settings, sessions, grader_environment, engine.info)
        estimating = Background(settings, sessions, Estimate, estimator.execute, settings.estimate_concurrency).run(
            supervisor.stopping
        )
        batch_executor = BatchExecutor(settings, sessions, grader_environment)
        batching = Background(
            settings, sessions, Batch, batch_executor.execute, settings.batch_concurrency, MOST_TRIES
        ).run(supervisor.stopping)
        run_executor = JobRunExecutor(settings, sessions, grader_environment)
        running = Background(settings, sessions, JobRun, run_executor.execute, settings.job_run_concurrency).run(
            supervisor.stopping
        )
        work = (supervisor.run(), validating, sender.run(), sweeping, idle, evaluating, estimating, batching, running)
        tasks = [asyncio.create_task(run) for run in work]
        yield
        supervisor.stopping.set()
        await asyncio.gather(*tasks)
        grading.shutdown()
        lookups.shutdown()
        schemas.shutdown()
        embedding.shutdown()
        registry.close()

    capacity = engine.health()
    max_cache_tokens = settings.max_cache_tokens or capacity.cache_capacity
    app = FastAPI(title="Iro", lifespan=supervised, default_response_class=AsciiJSON, routes=[*_routes()])
    max_project_rows = settings.max_project_rows or capacity.shared_rows
    admission = Admission(settings.max_active_rows, settings.max_waiting, max_cache_tokens, max_project_rows)
    app.state.context = Context(
        settings,
        sessions,
        registry,
        grader_environment,
        admission,
        Deadlines(),
        keys_required,
        grading,
        lookups,
        schemas,
        embedding,
    )
    app.state.file_slots = FairSlots(places=4, per_project=2, max_waiting=settings.max_waiting)
    json_bytes = min(settings.max_json_bytes, settings.max_body_bytes)
    app.add_middleware(ReceiveTimeout)
    app.add_middleware(BodyLimit, limits=BodyLimits(settings.max_body_bytes, json_bytes, settings.max_json_values))
    app.add_middleware(Access, required=keys_required, internal_key=internal_key)
    app.add_middleware(SendTimeout, seconds=settings.send_timeout)
    errors.install(app)
    page.install(app)
    return app


@cache
def _routes() -> list[BaseRoute]:
    """All routes of the API: servers of one process share them, since it takes long to prepare their schemas."""
    v1 = APIRouter(prefix="/v1", responses=errors.RESPONSES)
    for route in (
        models,
        files,
        uploads,
        webhooks,
        estimates,
        fine_tuning,
        job_events,
        permissions,
        graders,
        evals,
        eval_runs,
        chat,
        stored_completions,
        completions,
        embeddings,
        responses,
        batches,
        job_runs,
        health,
    ):
        v1.include_router(route.router)
    root = APIRouter(default_response_class=AsciiJSON)
    root.include_router(v1)
    root.include_router(metrics.router)
    return root.routes


def serve(settings: Settings) -> None:
    """Load the model, preparing it the first time, and serve until interrupted."""
    logs.configure(settings.log_format)
    cut_access_log()
    raise_descriptor_limit()
    if settings.otlp_endpoint:
        tracing.start(settings.otlp_endpoint)
    model_dir = settings.model_dir or prepare_model()
    settings = settings.model_copy(update={"model_dir": model_dir})
    check_keys(settings)
    log_isolation(settings)
    CACHES.limit = settings.value_cache_bytes
    spool_uploads(settings)
    with closing(open_engine(model_dir, settings.model_name, settings.endpoints)) as engine:
        prepare_grammars(engine)
        config = uvicorn.Config(
            create_app(settings, engine),
            host=settings.host,
            port=settings.port,
            timeout_graceful_shutdown=math.ceil(settings.drain) + ENDING,
            log_config=None,
        )
        Server(config, settings.drain).run()


class Server(uvicorn.Server):
    """One that gives the requests under way ``drain`` seconds once it is told to stop, and those that are not done by
    then an error, which a stream's client would not get from uvicorn."""

    def __init__(self, config: uvicorn.Config, drain: float) -> None:
        config.timeout_keep_alive = KEEP_ALIVE
        super().__init__(config)
        self.drain = drain
        app: Any = config.app
        self.unread = UnreadConnections(app.state.context.settings.send_timeout)
        self.idle = IdleConnections(max_idle_connections())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(AcceptErrors())
        await super().startup(sockets)
        if self.started:
            app: Any = self.config.app
            settings = app.state.context.settings
            log.info("files, jobs and models: %s", settings.data_dir.absolute())
            log.info("the page is at %s", page.address(settings))

    async def on_tick(self, counter: int) -> bool:
        connections = self.server_state.connections
        self.unread.reset_old(connection.transport for connection in connections)
        if counter % IDLE_TICKS == 0 or len(connections) > self.idle.limit:
            self.idle.close_old(connections)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app: Any = self.config.app
        app.state.context.deadlines.stop_within(self.drain)
        closing = asyncio.create_task(self._close_connections())
        try:
            await super().shutdown(sockets)
        finally:
            closing.cancel()

    async def _close_connections(self) -> None:
        """Close what is idle, and the rest after their answers: uvicorn does so once, and a connection that is being
        accepted then would stay open, and be asked again, for as long as its client keeps it. It has ``CLOSE_EVERY``
        seconds for the request that it came with."""
        open_before = set(self.server_state.connections)
        while True:
            for connection in self.server_state.connections & open_before:
                connection.shutdown()
            open_before = set(self.server_state.connections)
            await asyncio.sleep(CLOSE_EVERY)


def prepare_grammars(engine: Engine) -> None:
    """Read the vocabulary that schemas need, which stops the event loop, before there are requests."""
    if engine.info.adjusts:
        with suppress(SchemaRefused):  # as the first request with a schema will be told
            grammars_of(engine.tokenizer, engine.info.eos_ids).prepare()


def log_isolation(settings: Settings) -> None:
    """Where python graders run, and how they are isolated."""
    if settings.python_graders == "off":
        return
    if settings.grader_service:
        log.info("python graders run in the service at %s", settings.grader_service)
    elif settings.python_graders == "sandbox" and (problem := isolation_problem()):
        log.warning("python graders are refused: this host gives no isolation (%s); install bubblewrap", problem)
    elif settings.python_graders == "sandbox":
        log.info("python graders: %s", cgroup.memory_bound())


def spool_uploads(settings: Settings) -> None:
    """Have uploads wait in the data directory while they arrive: ``/tmp`` may be a small one, in memory."""
    folder = settings.data_dir / "spool"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    tempfile.tempdir = str(folder)  # starlette's forms take no folder of their own


def check_keys(settings: Settings) -> None:
    """ValueError where the server would be reached from other machines though no key exists that it could ask for."""
    if is_loopback(settings.host) or settings.require_keys is False or keys.exist(open_database(settings)):
        return
    is_named = settings.database_url and "IRO_DATABASE_URL" not in os.environ  # which `iro keys` reads too
    database = f" --database-url '{make_url(settings.url).render_as_string()}'" if is_named else ""  # no password
    raise ValueError(
        f"host {settings.host} is open to other machines, and there is no API key yet: make one with "
        f"`iro keys create NAME --data-dir '{settings.data_dir}'{database}`, or set IRO_REQUIRE_KEYS=false where "
        "something else guards the server"
    )


def check_port(settings: Settings) -> None:
    """OSError where the address is taken: better told before the model is loaded than after."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise OSError(f"{where} cannot be served ({error.strerror}): choose another --port or --host") from error
