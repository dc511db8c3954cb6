"""The configuration of `iro run bilevel.bl_just`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from training.speech.corpus import CorpusConfig
from training.speech.schedule import JOINT, TrainingMethod

Rate = Literal["lr", "gamma", "exploration_lr", "pseudo_share", "weight_decay"]


class BLJustConfig(CorpusConfig):
    """The recordings, the recogniser and its training.

    An epoch is ``exploration_passes`` on L_unsup at ``exploration_lr`` and one joint pass at ``lr``; where γ rises, it
    does by ``gamma_step`` per epoch up to ``gamma``; ``finetune_passes`` at ``finetune_lr`` follow.
    """

    encoder: Literal["bilstm", "conformer"] = Field("bilstm", description="The recogniser's encoder.")
    width: int = Field(96, ge=8, multiple_of=8, description="Width of the encoder.")
    layers: int = Field(1, ge=1, description="Layers of the encoder.")
    context: float = Field(0.5, ge=0.01, description="Seconds of a CPC window; a frame has 0.01.")
    future: float = Field(0.3, ge=0.01, description="Seconds that CPC predicts.")

    methods: tuple[TrainingMethod, ...] = Field(
        ("supervised", "pretrain", "pseudo", "fixed", "bl_just"),
        min_length=1,
        description="The methods to compare. supervised: the texts alone; pretrain: L_unsup, then the texts; pseudo: "
        "the model's own transcripts beside the texts; fixed, rising: both losses with such a γ; fixed_explore, "
        "bl_just: the same with exploration; gradient_norm: bl_just with the other penalty.",
    )
    models: int = Field(5, ge=1, description="Trainings of each method, with different seeds.")
    epochs: int = Field(40, ge=1, description="Epochs, each `exploration_passes` on L_unsup and one joint pass.")
    exploration_passes: int = Field(1, ge=0, description="Passes of an epoch on L_unsup alone.")
    finetune_passes: int = Field(1, ge=0, description="Passes on the labelled loss after the epochs.")
    batch: int = Field(32, ge=2, description="Recordings of a batch.")
    exploration_lr: float = Field(1e-3, gt=0, description="Learning rate of the exploration passes.")
    lr: float = Field(4e-3, gt=0, description="Learning rate of the joint pass.")
    finetune_lr: float = Field(4e-4, gt=0, description="Learning rate of the passes after the epochs.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay.")
    gamma: float = Field(0.3, ge=0, description="γ, the weight of L_unsup; where it rises, the largest.")
    gamma_step: float | None = Field(
        None, ge=0, description="By how much γ grows in an epoch. Null: it reaches `gamma` in the last one."
    )
    pseudo_rounds: int = Field(2, ge=1, description="How often the pseudo-labels are made anew.")
    pseudo_share: float = Field(0.3, gt=0, le=1, description="Share of the unlabelled recordings with pseudo-labels.")
    select: Literal["wer", "cer"] = Field("cer", description="The error rate on dev that chooses settings.")
    tune: bool = Field(False, description="Choose `lr`, then the second rate of each method, on dev.")
    tuning_epochs: int | None = Field(None, ge=1, description="Epochs of the runs that choose. Null: `epochs`.")
    grids: dict[Rate, tuple[float, ...]] = Field(
        {}, description="Values to try, ascending, by rate, where they are not the job's own."
    )
    extensions: int = Field(4, ge=0, description="How many values a grid may grow by where its edge is the best.")

    device: str = Field("cpu", description="Where PyTorch trains: cpu, cuda, ….")
    workers: int = Field(0, ge=0, description="Processes that read recordings; 0: the training's own.")
    processes: int = Field(
        1, ge=1, description="Trainings at once. With several, those under way begin anew after a kill."
    )

    @field_validator("grids")
    @classmethod
    def _ascending_rates(cls, value: dict[Rate, tuple[float, ...]]) -> dict[Rate, tuple[float, ...]]:
        for rate, grid in value.items():
            names = {f"{number:g}" for number in grid}  # as the steps of the run name them
            if not grid or list(grid) != sorted(grid) or len(names) < len(grid):
                raise ValueError(f"{rate}: one value or more, ascending and distinct, not {_listed(grid)}")
            field = TypeAdapter(Annotated[float, *cls.model_fields[rate].metadata])
            for number in grid:
                try:
                    field.validate_python(number)
                except ValidationError as error:
                    raise ValueError(f"{rate}: {error.errors()[0]['msg']}, not {number:g}") from None
        return value

    @model_validator(mode="after")
    def _tuned_gamma_rises(self) -> BLJustConfig:
        epochs = self.tuning_epochs or self.epochs
        stays_zero = self.gamma_step is not None and self.gamma_step * (epochs - 1) == 0
        methods = [method for method in self.methods if method in JOINT and JOINT[method].rises]
        if self.tune and stays_zero and methods:
            raise ValueError(
                f"gamma_step={self.gamma_step:g}: γ of {', '.join(methods)} stays 0 in tuning runs of {epochs} epochs, "
                "whichever value is tried; raise gamma_step and tuning_epochs, or leave gamma_step null"
            )
        return self


def _listed(grid: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{number:g}' for number in grid)}]"


GRIDS: dict[Rate, tuple[float, ...]] = {
    "lr": (1.5e-3, 3e-3, 6e-3),
    "gamma": (0.1, 0.3, 1.0),
    "exploration_lr": (3e-4, 1e-3, 3e-3),
    "pseudo_share": (0.1, 0.3, 0.9),
    "weight_decay": (0.01, 0.1, 1.0),
}
SECOND: dict[TrainingMethod, Rate] = {  # what is chosen after ``lr``
    "supervised": "weight_decay",
    "pretrain": "exploration_lr",
    "pseudo": "pseudo_share",
}


def rates_of(method: TrainingMethod) -> tuple[Rate, Rate]:
    """What is chosen for a method, in this order."""
    return "lr", SECOND.get(method, "gamma")
