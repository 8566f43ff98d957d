"""The checksums of a library's files: LanceDB keeps none, and takes flipped bits for numbers.

Its files are written once, under a name that no other one gets, so a file that is recorded and differs is damaged. One
that is not recorded yet (a process was killed, or another program wrote it) is taken as it is, and one that is gone was
replaced by others: LanceDB itself misses what it needs.
"""

from __future__ import annotations

import json
from pathlib import Path

from selfsup.errors import UserError
from selfsup.files import checksum, write_atomically
from selfsup.inference.items import digest

RECORD = ".checksums.json"
KEPT = ("data", "_deletions", "_indices", "_versions")  # directories of what is written once
MUTABLE = "latest_version_hint.json"
CHECKED = 1 << 28  # bytes, at most, whose content is looked at: a third of a second; of more, only the sizes

Recorded = dict[str, tuple[int, str]]  # size and checksum by the path in the library


def record(library: Path) -> None:
    """Note the files that are there and not noted yet."""
    noted, found = _read(library), {}
    for file in (file for directory in KEPT for file in sorted((library / directory).rglob("*"))):
        if file.is_file() and file.name != MUTABLE:
            name = str(file.relative_to(library))
            found[name] = noted[name] if name in noted else (file.stat().st_size, checksum(file))
    if found != noted:
        write_atomically(library / RECORD, json.dumps(found))


def verify(library: Path) -> None:
    """Raise a UserError where a file is not as it was noted."""
    noted = _read(library)
    whole = sum(size for size, _ in noted.values()) <= CHECKED
    for name, (size, content) in noted.items():
        file = library / name
        if file.is_file() and (file.stat().st_size != size or (whole and checksum(file) != content)):
            raise UserError(
                f"{library} is damaged ({name} is not as it was written); restore it, or make it anew under another "
                "name."
            )


def fingerprint(library: Path) -> str:
    """32 hex digits that change with the files that are noted."""
    return digest(json.dumps(_read(library), sort_keys=True).encode())


def _read(library: Path) -> Recorded:
    if not (library / RECORD).exists():
        return {}
    try:
        noted = json.loads((library / RECORD).read_text(encoding="utf-8"))
        return {str(name): (int(size), str(digest)) for name, (size, digest) in noted.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{library / RECORD} is damaged; remove it to use the library without its checksums.") from None
