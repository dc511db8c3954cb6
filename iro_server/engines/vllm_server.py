"""Starts a vLLM server for the frozen model: ``python -m iro_server.engines.vllm_server --port 8001``.

vLLM pins many versions, so it has an environment of its own (``make vllm`` installs it into ``.venv-vllm``). On a GPU,
or for several of them, start vLLM by its own command with the same flags and those of its documentation.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from iro_server.engines.prepare import prepare_model

MAX_RANK = 32  # of an adapter
# vLLM's default backend ignores some keywords of a schema without a word. This one is llguidance, as in Iro's process.
SCHEMA_FLAGS = ("--structured-outputs-config.backend", "guidance")
# Of a CPU. A block is what the prefix cache reuses: 32 tokens is the least that vLLM takes there. A prompt that is read
# in parts would end vLLM 0.32 where its request has a seed ("CPU Generator does not use offset"): it is read whole.
FLAGS = (
    *("--dtype", "float32", "--enforce-eager", "--block-size", "32"),
    *("--no-enable-chunked-prefill", "--enable-prompt-tokens-details"),
    *(
        "--enable-lora",
        "--lora-target-modules",
        "lm_head",
        "--max-lora-rank",
        str(MAX_RANK),
    ),  # tilts: the output head alone
    *("--max-loras", "4", "--max-cpu-loras", "64"),
    "--enable-scale-out",  # the route that reports log-probabilities of chosen tokens
    *SCHEMA_FLAGS,
)
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


def command(python: Path, model_dir: Path, port: int, *more: str) -> list[str]:
    """What starts the server; ``more`` are flags of vLLM's."""
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model_dir), "--port", str(port)]
    return [str(python), *module, "--host", "127.0.0.1", "--served-model-name", model_dir.name, *FLAGS, *more]


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """``base`` with what vLLM needs, where it says nothing of its own; without Iro's own path of modules."""
    return ENVIRONMENT | {name: value for name, value in base.items() if name != "PYTHONPATH"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=Path(".venv-vllm/bin/python"), help="that has vLLM")
    parser.add_argument("--model", type=Path, help="a prepared directory; default: the default model")
    parser.add_argument("--port", type=int, default=8001)
    args, more = parser.parse_known_args()
    if not args.python.exists():
        parser.error(f"{args.python} does not exist: `make vllm` installs vLLM")
    start = command(args.python, args.model or prepare_model(), args.port, *more)
    os.execve(start[0], start, environment(os.environ))


if __name__ == "__main__":
    main()
