"""Whether a full disk keeps a job from going on."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

ROOM = 16 * 2**20  # bytes: with less than this left, whatever failed did so for want of space
FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)
PAUSED = "The disk is full: the job is paused. Make room and resume it."


def is_full(folder: Path) -> bool:
    """Whether the disk of ``folder``, which need not exist yet, has too little space left."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free < ROOM


def is_cause(error: BaseException | None, folder: Path) -> bool:
    """Whether the error comes of a full disk; a library may tell of a failed write in words of its own."""
    if is_full(folder):
        return True
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL_ERRORS:
            return True
        error = error.__cause__ or error.__context__
    return False
