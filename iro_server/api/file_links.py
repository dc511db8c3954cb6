"""Links to stored files, by which what reads a file keeps it once it is deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

from iro_server.api.context import Context
from iro_server.api.errors import not_found
from iro_server.store.files import link


def link_file(context: Context, id: str, param: str, folder: Path, name: str) -> None:
    """Give the stored file the path ``name`` in ``folder``. 404 if it has been deleted: then ``folder`` goes too."""
    try:
        link(context.settings.files_dir / id, folder / name)
    except FileNotFoundError:  # deleted this instant
        shutil.rmtree(folder)
        raise not_found("file", id, param) from None
