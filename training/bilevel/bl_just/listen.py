"""`python -m training.bilevel.bl_just.listen RUN AUDIO…`: what a recogniser of a run folder hears."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from training.bilevel.bl_just import text
from training.bilevel.bl_just.features import Features
from training.bilevel.bl_just.manifest import recording
from training.bilevel.bl_just.model import Recogniser
from training.bilevel.bl_just.training import transcribe
from training.checkpoints import open_checkpoints


def load(folder: Path, name: str = "bl_just-0") -> tuple[Recogniser, text.Tokenizer, int]:
    """The recogniser that training ``name`` left in a run folder, its tokenizer, and the sample rate it hears.

    Raises ValueError if there is none.
    """
    started = json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {}
    checkpoints = open_checkpoints(started.get("checkpoints") or str(folder / "checkpoints"))
    if not checkpoints.has(f"{name}-state"):
        raise ValueError(
            f"{folder} has no training {name}: give the folder of a run of bilevel.bl_just that has begun it"
        )
    config, state = started["config"], checkpoints.load(f"{name}-state")
    tokenizer = text.restore(state["tokenizer"])
    model = Recogniser(config["encoder"], config["width"], config["layers"], tokenizer.size)
    model.load_state_dict(state["model"])
    return model, tokenizer, config["sample_rate"]


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(f"usage: {(__doc__ or '').split(':')[0]}")
    try:
        model, tokenizer, rate = load(Path(sys.argv[1]))
        recordings = [recording(Path(name), None, "the command line") for name in sys.argv[2:]]
    except ValueError as error:
        sys.exit(str(error))
    for one, said in zip(recordings, transcribe(model, Features(recordings, rate), tokenizer), strict=True):
        print(f"{one.audio}: {said}")


if __name__ == "__main__":
    main()
