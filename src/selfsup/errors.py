"""The ways in which a command ends early on purpose."""

from __future__ import annotations

import re

from selfsup.report import printable

HALF = re.compile("[\ud800-\udfff]")  # half a character; of what the system gives, a byte that is no UTF-8


class UserError(Exception):
    """Something the user can put right. The command line prints it as one sentence and exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.splitlines())))  # what a user named may hold anything


class Interrupted(Exception):
    """The user, or the system, asked a run to stop; it has been saved, and the message says how to go on."""


class OfOneProcess(UserError):
    """What one of several processes met with; it alone says so."""


class Elsewhere(Exception):
    """Another process of this training failed, and says why."""


class Damaged(UserError):
    """A file or folder of several that cannot be read; whoever allows all of them to fail goes on with the others."""


def require_text(text: str, name: str) -> None:
    """Raise a UserError where a string is no text: bytes that are no UTF-8 came in with it."""
    if found := HALF.search(text):
        raise UserError(
            f"{name} holds bytes that are no UTF-8 ({printable(text[max(0, found.start() - 30) :][:60])}); give it in "
            "UTF-8, and rename a file of such a name."
        )
