"""Models of transformers, with every weight that they compute with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging


def load_whole_model(auto_class: Any, directory: Path | str, unused: Sequence[str] = (), **options: Any) -> Any:
    """What ``auto_class.from_pretrained`` reads from ``directory``, with ``options``.

    ValueError where the directory lacks weights, which transformers would draw at random. ``unused``: beginnings of the
    names of weights that nobody computes with.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers would report the weights that are left out on purpose too
    try:
        model, report = auto_class.from_pretrained(directory, output_loading_info=True, **options)
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(tuple(unused)))
    if missing:
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ValueError(f"{directory} lacks weights of a {type(model).__name__}: {names}")
    return model
