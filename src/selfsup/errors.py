"""The one kind of error a user can cause: a sentence that says what is wrong, where, and what to do."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right. The command line prints it as one sentence and exits with 2."""
