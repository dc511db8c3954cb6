"""A value stack on disk: ``value.safetensors`` and ``manifest.json``, tied to the frozen model it was fitted on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from value_heads.features import FeatureSpec
from value_heads.heads import Head, LinearHead, MLPHead
from value_heads.stack import ValueStack
from value_heads.tilt import Tilt

if TYPE_CHECKING:
    from value_heads.backbone import LoraValues

TENSORS, MANIFEST = "value.safetensors", "manifest.json"
TILT, TEXT = "tilt", "text_counts"
FORMAT_VERSION: Literal[7] = 7


class BundleMismatch(ValueError):
    """The bundle was fitted on another frozen model, chat template or value backbone."""


class HeadEntry(BaseModel):
    """One iteration's value function; ``hidden`` and ``dropout`` apply to an MLP. ``spec``: but for the counts of the
    tokens' text, which are a tensor; ``text``: whether it reads them."""

    model_config = ConfigDict(extra="forbid")

    iteration: int
    kind: Literal["linear", "mlp"]
    beta: float
    spec: FeatureSpec
    text: bool = False
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0


class LoraEntry(BaseModel):
    """LoRA adapters, and the hash of the weights of the backbone that they adapt."""

    model_config = ConfigDict(extra="forbid")

    backbone_hash: str
    num_layers: int
    rank: int
    alpha: int
    betas: list[float]


class TiltEntry(BaseModel):
    """What a tilt is beside its tensors."""

    model_config = ConfigDict(extra="forbid")

    ignored: tuple[int, ...]
    stop_ids: tuple[int, ...]
    sharpness: float = 0.0


class Manifest(BaseModel):
    """The manifest of a bundle. ``kind`` selects which of ``heads`` and ``lora`` is set.

    Format 2 added ``tilt``, format 3 ``ended`` features, format 4 the layer HEAD_STATE, format 5 a tilt's
    ``sharpness``, format 6 what it reads of a response's length, format 7 counts of the text; a bundle of an earlier
    format is read as one without.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: Literal[1, 2, 3, 4, 5, 6, 7]
    kind: Literal["heads", "lora"]
    model_hash: str
    template_hash: str
    tensors_sha256: str
    metrics: dict[str, Any]
    heads: list[HeadEntry] = []
    lora: LoraEntry | None = None
    tilt: TiltEntry | None = None


def save_bundle(
    directory: Path,
    stack: ValueStack | LoraValues,
    *,
    model_hash: str,
    template_hash: str,
    metrics: dict[str, Any] | None = None,
) -> Path:
    """Write a stack with its heads unfolded, so that betas can be changed later. The manifest is written last.

    ValueError for a tilt folded of jobs that ignored different words, which no bundle holds.
    """
    if stack.tilt is not None and stack.tilt.word_sets:
        raise ValueError("the tilt has several sets of gates on words, and a bundle holds one: save its parts")
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(stack, ValueStack):
        states = [_state(head) for head in stack.heads]
    else:
        states = [stack.backbone.iteration_state(t) for t in range(len(stack.betas))]
    tensors = {f"{t}.{name}": value.contiguous() for t, state in enumerate(states) for name, value in state.items()}
    tilt = stack.tilt
    if tilt is not None:
        tensors |= {f"{TILT}.{name}": value.contiguous() for name, value in tilt.tensors().items()}
    if isinstance(stack, ValueStack) and stack.spec.text_counts:
        tensors[TEXT] = torch.frombuffer(bytearray(stack.spec.text_counts.encode()), dtype=torch.uint8)
    save_file(tensors, directory / TENSORS)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        kind="heads" if isinstance(stack, ValueStack) else "lora",
        model_hash=model_hash,
        template_hash=template_hash,
        tensors_sha256=_sha256(directory / TENSORS),
        metrics=metrics or {},
        heads=_head_entries(stack) if isinstance(stack, ValueStack) else [],
        lora=None if isinstance(stack, ValueStack) else _lora_entry(stack),
        tilt=None if tilt is None else TiltEntry(**{name: getattr(tilt, name) for name in TiltEntry.model_fields}),
    )
    (directory / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return directory


def load_bundle(
    directory: Path, *, model_hash: str, template_hash: str, backbone_dir: Path | None = None
) -> ValueStack | LoraValues:
    """The stack saved under ``directory``. BundleMismatch if it belongs to another base, ValueError if unreadable.

    ``backbone_dir``: the model that LoRA value functions adapt; they cannot be loaded without it.
    """
    manifest = read_manifest(directory)
    _check_hash("base model", manifest.model_hash, model_hash, directory)
    _check_hash("chat template", manifest.template_hash, template_hash, directory)
    tensors = _load_tensors(directory, manifest)
    try:
        tilt = None if manifest.tilt is None else _tilt(manifest.tilt, tensors)
        if manifest.lora is not None:
            return _load_lora(manifest.lora, tensors, backbone_dir, directory).with_tilt(tilt)
        packed = tensors[TEXT].numpy().tobytes().decode() if TEXT in tensors else ""
        heads = [_head(entry, _under(tensors, index), packed) for index, entry in enumerate(manifest.heads)]
        return ValueStack(heads, [entry.beta for entry in manifest.heads], tilt)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{directory / TENSORS} lacks a tensor that {MANIFEST} tells of: {error}") from error


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a bundle. ValueError if it is missing or has another format."""
    path = directory / MANIFEST
    try:
        return Manifest.model_validate(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise ValueError(f"no value bundle in {directory}: {MANIFEST} is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise ValueError(f"{path} is not a value bundle's manifest of format {FORMAT_VERSION}: {error}") from error


def _head_entries(stack: ValueStack) -> list[HeadEntry]:
    entries = []
    for iteration, (head, beta) in enumerate(zip(stack.heads, stack.betas, strict=True), start=1):
        spec = head.spec.model_copy(update={"text_counts": ""})
        text = bool(head.spec.text_counts)
        entry = HeadEntry(iteration=iteration, kind="linear", beta=beta, spec=spec, text=text)
        if isinstance(head, MLPHead):
            entry = entry.model_copy(update={"kind": "mlp", "hidden": head.hidden, "dropout": head.dropout})
        entries.append(entry)
    return entries


def _lora_entry(values: LoraValues) -> LoraEntry:
    backbone = values.backbone
    return LoraEntry(
        backbone_hash=backbone.backbone_hash,
        num_layers=backbone.num_layers,
        rank=backbone.rank,
        alpha=backbone.alpha,
        betas=list(values.betas),
    )


def _load_lora(entry: LoraEntry, tensors: dict[str, Tensor], backbone_dir: Path | None, directory: Path) -> LoraValues:
    from value_heads.backbone import LoraBackbone, LoraValues  # on first use: peft and transformers take seconds

    if backbone_dir is None:
        raise ValueError(f"{directory} holds LoRA value functions: pass backbone_dir, the model they were fitted on")
    backbone = LoraBackbone(backbone_dir, entry.num_layers, entry.rank, entry.alpha)
    _check_hash("value backbone", entry.backbone_hash, backbone.backbone_hash, directory)
    for index in range(len(entry.betas)):
        try:
            backbone.add_iteration(_under(tensors, index))
        except RuntimeError as error:
            raise ValueError(f"the tensors of iteration {index + 1} are not a LoRA head's: {error}") from error
    return LoraValues(backbone, entry.betas)


def _tilt(entry: TiltEntry, tensors: dict[str, Tensor]) -> Tilt:
    parts: dict[str, Any] = entry.model_dump() | _under(tensors, TILT)
    return Tilt(**parts)


def _state(head: Head) -> dict[str, Tensor]:
    if isinstance(head, LinearHead):
        return {"weight": head.weight, "bias": torch.tensor([head.bias], dtype=torch.float64)}
    return head.state_dict()


def _head(entry: HeadEntry, tensors: dict[str, Tensor], text_counts: str) -> Head:
    spec = entry.spec.model_copy(update={"text_counts": text_counts}) if entry.text else entry.spec
    if entry.kind == "linear":
        return LinearHead(spec, tensors["weight"], float(tensors["bias"]))
    head = MLPHead(spec, tensors["mean"], tensors["std"], entry.hidden, entry.dropout)
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"the tensors of iteration {entry.iteration} are not an MLP's: {error}") from error
    return head.eval()


def _under(tensors: dict[str, Tensor], index: int | str) -> dict[str, Tensor]:
    prefix = f"{index}."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load_tensors(directory: Path, manifest: Manifest) -> dict[str, Tensor]:
    path = directory / TENSORS
    if not path.is_file():
        raise ValueError(f"no value bundle in {directory}: {TENSORS} is missing")
    if _sha256(path) != manifest.tensors_sha256:
        raise ValueError(f"{path} is corrupt: its SHA-256 is not the manifest's; copy or fit the bundle again")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no file of tensors: {error}") from error


def _check_hash(component: str, saved: str, expected: str, directory: Path) -> None:
    if saved != expected:
        raise BundleMismatch(
            f"the value functions in {directory} were fitted on another {component} "
            f"({saved[:12]}…, here {expected[:12]}…): load them with the {component} they were fitted on, "
            "or align this one anew"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
