"""`python -m training.speech.listen RUN AUDIO…`: transcribes recordings with the recogniser of a run folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from training.checkpoints import open_checkpoints
from training.speech import text
from training.speech.features import Features
from training.speech.manifest import recording
from training.speech.model import Recogniser
from training.speech.training import transcribe


def load(folder: Path, name: str | None = None) -> tuple[Recogniser, text.Tokenizer, int]:
    """The recogniser of training ``name`` in a run folder, its tokenizer, and its sample rate.

    Without a name: of the first training of bl_just, or of the run's first method where bl_just is none of them.
    Raises ValueError if there is none.
    """
    started = json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {}
    if name is None:
        methods = started.get("config", {}).get("methods", ["bl_just"])
        name = f"{'bl_just' if 'bl_just' in methods else methods[0]}-0"
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
    for source, transcript in zip(recordings, transcribe(model, Features(recordings, rate), tokenizer), strict=True):
        print(f"{source.audio}: {transcript}")


if __name__ == "__main__":
    main()
