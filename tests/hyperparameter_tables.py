"""The option tables of docs/hyperparameters.md, from the fields of the API's request.

``python -m tests.hyperparameter_tables`` writes them into the document.
"""

from __future__ import annotations

import re
from pathlib import Path

from iro_server.alignment.definition import DEFAULT_OPTIONS
from iro_server.alignment.reference import field_rows, markdown_table
from iro_server.api.reinforcement_options import RENAMED, Hyperparameters, IroOptions

DOCUMENT = Path(__file__).parents[1] / "docs" / "hyperparameters.md"


def tables() -> dict[str, str]:
    """A table of each block of ``method.reinforcement``, by the block's name."""
    defaults = DEFAULT_OPTIONS.model_dump()
    renamed = {name: defaults[option] for name, option in RENAMED.items()}
    return {
        "hyperparameters": markdown_table(
            "`method.reinforcement.hyperparameters`", field_rows(Hyperparameters, renamed | {"compute_multiplier": 1.0})
        ),
        "iro": markdown_table("`method.reinforcement.iro`", field_rows(IroOptions, defaults)),
    }


def with_tables(text: str) -> str:
    """The document's ``text`` with the tables as they are now."""
    for name, table in tables().items():
        block = f"<!-- table: {name} -->\n{table}<!-- end -->"
        text = re.sub(rf"<!-- table: {name} -->\n.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))
