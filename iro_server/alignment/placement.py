"""Where the work of batch jobs is done, and where they keep what they have computed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Placement(BaseSettings):
    """Read by a job's process from ``IRO_<NAME>``; a server sets those of its workers. An empty variable is as if it
    were not set, and ``null`` is None.

    ``storage``: a URL that fsspec knows, such as ``s3://bucket/prefix``, under which each new run gets a place for its
    checkpoints; None: its run folder. ``executor`` "ray" spreads rollouts, grading and value fits of alignment jobs
    over the Ray cluster at ``ray_address``; None: over one on this machine, which ends with the job. ``ray_cpus`` and
    ``ray_gpus``: of an engine, and of a value fit. ``ray_actors``: engines at once, at most; None: as many as the
    cluster has room for when a step begins. ``ray_fit_actors``: processes that share the fit of a LoRA backbone.
    """

    model_config = SettingsConfigDict(frozen=True, env_prefix="IRO_", env_ignore_empty=True, env_parse_none_str="null")

    storage: str | None = Field(None, pattern=r"^[a-z][a-z0-9+.-]*://.+")
    executor: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    ray_cpus: float = Field(1.0, gt=0)
    ray_gpus: float = Field(0.0, ge=0)
    ray_actors: int | None = Field(None, ge=1)
    ray_fit_actors: int = Field(1, ge=1)

    @property
    def placement(self) -> dict[str, str]:
        """The environment variables from which another process reads the same."""
        fields = ((name, getattr(self, name)) for name in Placement.model_fields)
        return {f"IRO_{name.upper()}": str(value) for name, value in fields if value is not None}
