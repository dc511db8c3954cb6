"""What a server is told when it starts."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from iro_server import JsonObject
from iro_server.alignment.placement import Placement
from iro_server.engines.endpoints import DEFAULT_KIND, Endpoints, EngineUrl, Precision, checked_key
from iro_server.engines.opening import EngineKind
from iro_server.engines.prepare import DEFAULT_MODEL, iro_home
from iro_server.graders.endpoint_limits import EndpointLimits, TokenPrice
from iro_server.graders.environment import CurrentGraderEnvironment, GraderEnvironment, GraderService, PythonLimits
from iro_server.graders.local_models import BUNDLED_NAME, bundled_embedding_model
from iro_server.telemetry.logs import LogFormat

GRADERS_PORT = 8002  # of `iro graders`


def _absolute(path: Path) -> Path:
    """Jobs note paths that another working directory must find. ``~``: the home, where no shell has replaced it."""
    return Path(os.path.expanduser(path)).resolve()


Directory = Annotated[Path, AfterValidator(_absolute)]


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Settings(Placement):
    """One server's settings: each can be given in the environment as ``IRO_<NAME>``, one that is no text or number as
    JSON; an empty variable is as if it were not set. Files, jobs and, by default, the database live under ``data_dir``.

    ``model_dir`` None: the default model, prepared the first time. ``align_entry`` None: the entry point ``align`` of
    the group ``iro.jobs``; else ``module:attribute`` of another ``AlignmentJob``. Times are in seconds.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), env_prefix="IRO_", allow_inf_nan=False
    )

    data_dir: Directory = Field(default_factory=lambda: (iro_home() / "server").resolve())
    database_url: str | None = None
    database_connections: int = Field(20, gt=0)  # of this server at once
    database_timeout: float = Field(10.0, gt=0)  # of connecting, and of waiting for a connection that is free
    database_statement_timeout: float = Field(60.0, gt=0)  # PostgreSQL's, of one statement
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    require_keys: bool | None = None  # None: once there are keys, and wherever ``host`` is not loopback
    server_url: str | None = Field(None, pattern="^https?://")  # http://server:8000/v1, for jobs' graders elsewhere

    model_dir: Directory | None = None
    model_name: str = DEFAULT_MODEL.split("/")[-1]
    engine_urls: list[EngineUrl] = Field(default_factory=list)  # servers of the model; none: it runs in this process
    engine_kind: EngineKind = DEFAULT_KIND  # vllm without ``engine_urls``: embedded
    engine_model: str | None = None  # its name there; None: the first that is served
    engine_adapters: Path | None = None  # a directory that vLLM servers read too: tilts as LoRA adapters
    engine_precision: Precision = "float32"  # of products in process on a CPU
    engine_key: SecretStr | None = Field(None, exclude=True)
    engine_timeout: float = Field(600.0, gt=0)  # of one answer: one chunk of a search, all of a plain sample
    engine_patience: float = Field(30.0, ge=0)  # how long a request waits for an engine that fails
    value_cache_bytes: int = Field(2 * 2**30, ge=0)  # of what LoRA value functions keep of searches under way
    loaded_models: int = Field(16, gt=0)  # aligned ones in memory at once, and their graders
    model_idle: float = Field(3600.0, gt=0)  # how long one stays there unused
    organization: str = Field("iro", pattern=r"^[A-Za-z0-9_-]+$")

    max_body_bytes: int = Field(512 * 2**20, gt=0)  # of a form with a file
    max_json_bytes: int = Field(4 * 2**20, gt=0)  # of any other body
    max_json_values: int = Field(50_000, gt=0)  # in it, counted by its commas and opening brackets
    max_definition_bytes: int = Field(512 * 2**10, gt=0)  # of a job's method, or an eval's criteria or schema, as JSON
    max_upload_bytes: int = Field(8 * 2**30, gt=0)  # of a file that arrives in parts
    max_rows: int = Field(256, gt=0)  # W*K of one request
    max_request_tokens: int = Field(2**18, gt=0)  # W*K*max_tokens of one request
    max_active_rows: int = Field(512, gt=0)  # of all requests that generate at once; the others wait
    max_project_rows: int | None = Field(None, gt=0)  # of one project beside others; None: 8 in process on a CPU
    max_cache_tokens: int | None = Field(None, gt=0)  # they hold at once; None: half of the free memory's, in process
    max_waiting: int = Field(256, ge=0)  # requests of one project that wait; one more is refused
    request_timeout: float = Field(600.0, gt=0)
    drain: float = Field(30.0, ge=0)  # for requests under way when the server is told to stop
    default_max_tokens: int = Field(256, gt=0)  # of a chat request that names none
    send_timeout: float = Field(60.0, gt=0)  # for a client to read a part of its answer; then its connection ends

    requests_per_minute: int | None = Field(None, gt=0)  # of a key that has no limits of its own
    tokens_per_minute: int | None = Field(None, gt=0)
    concurrency: int | None = Field(None, gt=0)

    project_bytes: int = Field(100 * 2**30, gt=0)  # of a project's files
    project_files: int = Field(10_000, gt=0)
    project_jobs: int = Field(200, gt=0)  # that have not ended
    project_stored_bytes: int = Field(20 * 2**30, gt=0)  # of stored responses, chat completions and eval runs
    project_webhooks: int = Field(50, gt=0)
    project_responses: int = Field(100_000, gt=0)  # stored and not expired
    response_seconds: float = Field(30 * 86400.0, ge=1)  # that a response is stored
    project_completions: int = Field(100_000, gt=0)  # chat completions, stored and not expired
    completion_seconds: float = Field(30 * 86400.0, ge=1)  # that a chat completion is stored
    project_evals: int = Field(1000, gt=0)
    project_eval_runs: int = Field(50, gt=0)  # that have not ended
    project_eval_items: int = Field(200_000, gt=0)  # of all runs
    eval_items: int = Field(20_000, gt=0)  # of one run
    eval_bytes: int = Field(64 * 2**20, gt=0)  # of one run's items, as JSON
    eval_concurrency: int = Field(2, ge=0)  # runs at once on this server; 0: they are for other servers
    job_estimates: bool = True  # whether each job is estimated, beside it, once its files are validated
    estimate_seconds: float = Field(120.0, gt=0, le=3600)  # of sampling and grading for one estimate, about
    estimate_prompts: int = Field(24, ge=3, le=256)  # at most, in that time
    estimate_rollouts: int = Field(8, ge=2, le=128)  # completions of each
    estimate_concurrency: int = Field(1, ge=0)  # estimates at once on this server; 0: they are for other servers
    project_batches: int = Field(50, gt=0)  # that have not ended
    batch_requests: int = Field(50_000, gt=0)  # of one batch
    batch_concurrency: int = Field(1, ge=0)  # batches at once on this server; 0: they are for other servers
    project_job_runs: int = Field(50, gt=0)  # of batch jobs, that have not ended
    job_run_concurrency: int = Field(1, ge=0)  # runs of batch jobs at once on this server; 0: for other servers
    project_estimates: int = Field(10, gt=0)  # that have not ended
    lease: float = Field(30.0, gt=0)  # after which another server goes on with what one that died did in the background
    retention: float | None = Field(90 * 86400.0, gt=0)  # of what ended: events of jobs, estimates, batches, uploads, …

    python_graders: Literal["sandbox", "unsafe", "off"] = "sandbox"
    python_limits: PythonLimits = PythonLimits()
    grader_service: str | None = Field(None, pattern="^https?://")  # http://graders:8002; None: they run beside this
    grader_service_key: SecretStr | None = Field(None, exclude=True)
    grader_patience: float = Field(30.0, ge=0)  # how long a request waits for a grader service that does not answer
    grader_endpoints: dict[str, str] = Field(default_factory=dict)  # base URL: environment variable with its key, or ""
    grader_limits: dict[str, EndpointLimits] = Field(default_factory=dict)  # base URL: requests and tokens per minute
    grader_prices: dict[str, TokenPrice] = Field(default_factory=dict)  # model: of a million tokens, input and output
    reward_models: dict[str, Directory] = Field(default_factory=dict)  # sequence classifiers by name
    embedding_model: Directory | None = None  # for cosine similarity and /v1/embeddings; None: an installed MiniLM
    embedding_name: str | None = None  # by which /v1/embeddings calls it; None: its directory's
    embedding_tokens: int = Field(300_000, gt=0)  # of one request
    max_graded_bytes: int = Field(100_000, gt=0)  # of a text to be graded, in UTF-8
    max_judge_tokens_per_job: int | None = Field(None, gt=0)  # None: 50 million; without keys on loopback no limit
    metrics_open: bool = False  # whether /metrics is answered without a key where others need one
    otlp_endpoint: str | None = None  # where traces go, such as http://127.0.0.1:4318/v1/traces
    log_format: LogFormat = "text"
    private_webhooks: bool | None = None  # to private addresses; None: on loopback without keys
    grading_threads: int = Field(32, gt=0)  # calls of graders at once, for requests of all projects
    grading_per_project: int = Field(default_factory=lambda: max(2, os.cpu_count() or 1), gt=0)  # of them, of one
    grading_waiting: int = Field(64, ge=0)  # calls of one project that wait; one more is refused

    align_entry: str | None = None
    job_concurrency: int = Field(1, ge=0)  # 0: the jobs are for other servers, or `iro work`
    job_restarts: int = Field(2, ge=0)  # of a worker that died
    job_poll: float = Field(0.5, gt=0)
    heartbeat: float = Field(1.0, gt=0)
    heartbeat_timeout: float = Field(120.0, gt=0)
    cancel_grace: float = Field(20.0, ge=0)

    def webhooks_inside(self, keys_required: bool) -> bool:
        """Whether webhooks may go to private networks: as ``private_webhooks`` says, else where there is one user."""
        if self.private_webhooks is not None:
            return self.private_webhooks
        return is_loopback(self.host) and not keys_required

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints(
            urls=tuple(self.engine_urls),
            kind=self.engine_kind,
            model=self.engine_model,
            key=self.engine_key.get_secret_value() if self.engine_key else None,
            timeout=self.engine_timeout,
            patience=self.engine_patience,
            adapters=self.engine_adapters,
            precision=self.engine_precision,
        )

    @property
    def engine_fields(self) -> JsonObject:
        """The fields of a job's config that say where the frozen model is, or how this process runs it."""
        names = ("engine_urls", "engine_kind", "engine_model", "engine_timeout", "engine_adapters")
        named = ("engine_precision",) if self.endpoints.embedded else names
        return {name: getattr(self, name) for name in named}

    def moved_engine_fields(self, job_config: JsonObject) -> JsonObject:
        """Of a job on servers of the frozen model: where they are now, which may not be where they were when it was
        created. A job keeps the precision that it was created with."""
        return self.engine_fields if job_config.get("engine_urls") and self.engine_urls else {}

    @property
    def served_embedding_model(self) -> tuple[str, Path] | None:
        """The embedding model's name and directory."""
        if self.embedding_model is not None:
            return self.embedding_name or self.embedding_model.name, self.embedding_model
        bundled = bundled_embedding_model()
        return None if bundled is None else (self.embedding_name or BUNDLED_NAME, bundled)

    @property
    def url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'iro.db'}"

    @property
    def files_dir(self) -> Path:
        return self.data_dir / "files"

    @property
    def parts_dir(self) -> Path:
        return self.data_dir / "parts"

    def batch_dir(self, batch_id: str) -> Path:
        return self.data_dir / "batches" / batch_id

    def run_dir(self, run_id: str) -> Path:
        return self.data_dir / "runs" / run_id

    def job_dir(self, job_id: str) -> Path:
        return self.data_dir / "jobs" / job_id

    @property
    def own_url(self) -> str:
        """Where this machine reaches the server's API."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"

    def grader_environment(
        self, internal_key: str, keys_required: Callable[[], bool] = lambda: True
    ) -> GraderEnvironment:
        """Where graders run, the workers' too. A server without keys is its user's own, who may ask any endpoint.

        ``keys_required`` is called for each copy of these, so that a key made while the server runs is heeded.
        """
        return CurrentGraderEnvironment(
            lambda: is_loopback(self.host) and not keys_required(),
            base_url=self.server_url or self.own_url,
            api_key=internal_key,
            endpoints={url: checked_key(os.environ.get(name, ""), name) for url, name in self.grader_endpoints.items()},
            reward_models=self.reward_models,
            embedding_model=self.embedding_model,
            max_text_bytes=self.max_graded_bytes,
            max_judge_tokens=self.max_judge_tokens_per_job,
            answer_seconds=self.request_timeout,
            limits=self.grader_limits,
            prices=self.grader_prices,
            python=self.python_graders,
            python_limits=self.python_limits,
            grader_service=self._grader_service(),
        )

    def _grader_service(self) -> GraderService | None:
        if self.grader_service is None:
            return None
        if self.grader_service_key is None:
            raise ValueError("IRO_GRADER_SERVICE needs IRO_GRADER_SERVICE_KEY, which the service asks for")
        key = checked_key(self.grader_service_key.get_secret_value(), "IRO_GRADER_SERVICE_KEY")
        return GraderService(url=self.grader_service.rstrip("/"), key=key, patience=self.grader_patience)
