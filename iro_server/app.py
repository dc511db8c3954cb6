"""The server: OpenAI's API over one frozen model, and the supervisor of its jobs."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import APIRouter, FastAPI

from iro_server.api import chat, completions, errors, files, fine_tuning, health, models
from iro_server.api.context import Context
from iro_server.api.limits import BodyLimit
from iro_server.api.registry import ModelRegistry, ServedEngine
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import prepare_model
from iro_server.graders.surroundings import Surroundings
from iro_server.jobs.supervisor import Supervisor
from iro_server.settings import Settings
from iro_server.store.database import open_database


def create_app(settings: Settings, engine: ServedEngine) -> FastAPI:
    """The application. While it runs it starts and watches jobs; ``engine`` stays the caller's to close."""
    sessions = open_database(settings)
    surroundings = surroundings_of(settings)
    registry = ModelRegistry(engine, sessions, settings.model_dir, surroundings)

    @asynccontextmanager
    async def supervised(_: FastAPI) -> AsyncIterator[None]:
        supervisor = Supervisor(settings, sessions)
        watching = asyncio.create_task(supervisor.run())
        yield
        supervisor.stopping.set()
        await watching
        registry.close()

    app = FastAPI(title="Iro", lifespan=supervised)
    app.state.context = Context(settings, sessions, registry, surroundings)
    app.add_middleware(BodyLimit, most=settings.max_body_bytes)
    errors.install(app)
    v1 = APIRouter(prefix="/v1")
    for route in (models, files, fine_tuning, chat, completions, health):
        v1.include_router(route.router)
    app.include_router(v1)
    return app


def surroundings_of(settings: Settings) -> Surroundings:
    return Surroundings(
        base_url=f"http://{settings.host}:{settings.port}/v1",
        endpoints={url: os.environ.get(name, "") for url, name in settings.grader_endpoints.items()},
        reward_models=settings.reward_models,
        embedding_model=settings.embedding_model,
        python=settings.python_graders,
        python_limits=settings.python_limits,
    )


def serve(settings: Settings) -> None:
    """Load the model, preparing it the first time, and serve until interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    model_dir = settings.model_dir or prepare_model()
    settings = settings.model_copy(update={"model_dir": model_dir})
    with EmbeddedEngine(model_dir, settings.model_name) as engine:
        uvicorn.run(create_app(settings, engine), host=settings.host, port=settings.port, timeout_graceful_shutdown=10)
