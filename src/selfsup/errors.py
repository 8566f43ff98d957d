"""The two ways in which a command ends early on purpose."""

from __future__ import annotations

from selfsup.report import printable


class UserError(Exception):
    """Something the user can put right. The command line prints it as one sentence and exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.splitlines())))  # what a user named may hold anything


class Interrupted(Exception):
    """The user, or the system, asked a run to stop; it has been saved, and the message says how to go on."""


class Damaged(UserError):
    """A file or folder of several that cannot be read; whoever allows all of them to fail goes on with the others."""
