"""What a server is told when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from iro_server.engines.prepare import DEFAULT_MODEL, iro_home

Directory = Annotated[Path, AfterValidator(Path.resolve)]  # jobs note paths that another working directory must find


class Settings(BaseModel):
    """One server's settings. Files, jobs and, by default, the database live under ``data_dir``.

    ``model_dir`` None: the default model, prepared the first time. ``align_entry`` None: the entry point ``align`` of
    the group ``iro.jobs``; else ``module:attribute`` of an object with the same contract. Times are in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    data_dir: Directory = Field(default_factory=lambda: (iro_home() / "server").resolve())
    database_url: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)

    model_dir: Directory | None = None
    model_name: str = DEFAULT_MODEL.split("/")[-1]
    organization: str = Field("iro", pattern=r"^[A-Za-z0-9_-]+$")

    max_body_bytes: int = Field(512 * 2**20, gt=0)
    max_rows: int = Field(256, gt=0)  # W*K of one request
    default_max_tokens: int = Field(256, gt=0)  # of a chat request that names none

    align_entry: str | None = None
    job_concurrency: int = Field(1, ge=1)
    job_restarts: int = Field(2, ge=0)  # of a worker that died
    job_poll: float = Field(0.5, gt=0)
    heartbeat: float = Field(1.0, gt=0)
    heartbeat_timeout: float = Field(120.0, gt=0)
    cancel_grace: float = Field(20.0, ge=0)

    @property
    def url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'iro.db'}"

    @property
    def files_dir(self) -> Path:
        return self.data_dir / "files"

    def job_dir(self, job_id: str) -> Path:
        return self.data_dir / "jobs" / job_id
