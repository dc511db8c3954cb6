"""The methods: which passes over the recordings, in which order, and with which weight γ of L_unsup."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

from training.speech.penalty import Penalty, rising

PassKind = Literal["explore", "joint", "supervised", "transcribe", "pseudo", "fine-tune"]
TrainingMethod = Literal[
    "supervised", "pretrain", "pseudo", "fixed", "fixed_explore", "rising", "bl_just", "gradient_norm"
]
NAMES: dict[str, str] = {
    "supervised": "texts alone",
    "pretrain": "pre-training, then texts",
    "pseudo": "pseudo-labels",
    "fixed": "γ fixed",
    "fixed_explore": "γ fixed, exploration",
    "rising": "γ rising",
    "bl_just": "BL-JUST (γ rising, exploration)",
    "gradient_norm": "BL-JUST, gradient norm as penalty",
}


class TrainingSchedule(NamedTuple):
    """Passes, steps and rates; the fields are those of `BLJustConfig`."""

    epochs: int
    exploration_passes: int
    finetune_passes: int
    batch: int
    exploration_lr: float
    lr: float
    finetune_lr: float
    weight_decay: float
    gamma: float
    gamma_step: float | None
    pseudo_rounds: int
    pseudo_share: float
    context: float
    future: float
    workers: int = 0


class Pass(NamedTuple):
    """``labelled`` and ``unlabelled``: numbers of earlier passes over each; they seed the order of the data."""

    kind: PassKind
    gamma: float
    penalty: Penalty
    labelled: int
    unlabelled: int


class JointMethod(NamedTuple):
    """``rises``: γ grows from 0. ``explores``: passes on L_unsup alone precede each joint pass."""

    rises: bool
    explores: bool
    penalty: Penalty = "value"


JOINT: dict[TrainingMethod, JointMethod] = {
    "fixed": JointMethod(rises=False, explores=False),
    "fixed_explore": JointMethod(rises=False, explores=True),
    "rising": JointMethod(rises=True, explores=False),
    "bl_just": JointMethod(rises=True, explores=True),
    "gradient_norm": JointMethod(rises=True, explores=True, penalty="norm"),
}


def plan(method: TrainingMethod, schedule: TrainingSchedule) -> list[Pass]:
    """The passes of a method. All methods take the same supervised steps; "pretrain" and the methods that explore pass
    over the unlabelled recordings equally often."""
    joint = JOINT.get(method)
    kinds: list[tuple[PassKind, float]]
    if joint:
        kinds = _joint(joint, schedule)
    elif method == "pretrain":
        kinds = [("explore", 0.0)] * (schedule.epochs * (schedule.exploration_passes + 1))
        kinds += [("supervised", 0.0)] * schedule.epochs
    elif method == "pseudo":
        kinds = [(kind, 0.0) for kind in _pseudo(schedule)]
    else:
        kinds = [("supervised", 0.0)] * schedule.epochs
    kinds += [("fine-tune", 0.0)] * schedule.finetune_passes
    labelled = unlabelled = 0
    passes: list[Pass] = []
    for kind, gamma in kinds:
        passes.append(Pass(kind, gamma, joint.penalty if joint else "value", labelled, unlabelled))
        labelled += kind not in ("explore", "transcribe")
        unlabelled += kind in ("explore", "joint")
    return passes


def _joint(method: JointMethod, schedule: TrainingSchedule) -> list[tuple[PassKind, float]]:
    kinds: list[tuple[PassKind, float]] = []
    for k in range(schedule.epochs):
        if method.explores:
            kinds += [("explore", 0.0)] * schedule.exploration_passes
        kinds.append(("joint", _rising_gamma(schedule, k) if method.rises else schedule.gamma))
    return kinds


def _rising_gamma(schedule: TrainingSchedule, k: int) -> float:
    """γ of epoch k. Without ``gamma_step`` the last epoch has ``gamma``, though it is the first."""
    if schedule.gamma_step is not None:
        return rising(schedule.gamma_step, schedule.gamma, k)
    if schedule.epochs == 1:
        return schedule.gamma
    return rising(schedule.gamma / (schedule.epochs - 1), schedule.gamma, k)


def _pseudo(schedule: TrainingSchedule) -> list[PassKind]:
    """Equal parts: the first on the texts alone, each other after new transcripts of the unlabelled recordings."""
    rounds = min(schedule.pseudo_rounds, schedule.epochs - 1)
    ends = [round(schedule.epochs * (part + 1) / (rounds + 1)) for part in range(rounds + 1)]
    kinds: list[PassKind] = ["supervised"] * ends[0]
    for start, end in pairwise(ends):
        kinds.append("transcribe")
        kinds += ["pseudo"] * (end - start)
    return kinds
