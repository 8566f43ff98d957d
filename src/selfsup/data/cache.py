"""The directory where prepared data are kept from one command to the next."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfsup.errors import UserError


def cache_directory(cache: str | Path | None = None) -> Path:
    """The one given, else $SELFSUP_CACHE, else ~/.cache/selfsup."""
    return Path(cache or os.environ.get("SELFSUP_CACHE") or "~/.cache/selfsup").expanduser()


@contextmanager
def writable(directory: Path) -> Iterator[None]:
    """One sentence where the cache cannot be written; other errors of the system are not the cache's."""
    full = (errno.ENOSPC, errno.EDQUOT)
    closed = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
    try:
        yield
    except OSError as error:
        if error.errno not in (*full, *closed):
            raise
        problem = "has no space left" if error.errno in full else f"cannot be written ({error.strerror})"
        raise UserError(
            f"The cache {directory} {problem}: make room there or set SELFSUP_CACHE to another directory."
        ) from error
