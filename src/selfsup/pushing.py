"""To the Hugging Face hub: the model directory of a run with its card, and nothing else of the run."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from selfsup.arguments import checked
from selfsup.config import shown
from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.models.directories import OPENED, find_model, require_whole
from selfsup.models.huggingface import CARD
from selfsup.run import Run

SENT = (*OPENED, ".md", ".gguf", ".onnx", ".Modelfile")  # endings of what goes up: what is read, and never run
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
BRANCH = re.compile(r"\w[\w./-]{0,199}", re.ASCII)
HERE = "path/to/this/directory"  # as a card's example calls the model, which goes by its name there
NEW, CHANGED, SAME = "new", "replaces another one", "is there already"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class File:
    """A file that goes up: where it lies below the model directory, its bytes, and what is there under its name."""

    name: str
    size: int
    state: str | None = None  # `NEW`, `CHANGED` or `SAME`; None where the hub was not asked


@dataclass(frozen=True)
class LeftOut:
    """What stays here, a file or a directory, and its bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Pushed:
    """What went up, or would."""

    to: str
    url: str
    revision: str
    files: list[File]
    left_out: list[LeftOut]
    dry_run: bool
    commit: str | None = None  # None where nothing had to be sent

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def print(self, console: Console) -> None:
        """What goes up or would, what stays, and where it is then."""
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        for title in ("file", "bytes", "on the hub"):
            table.add_column(title, justify="right" if title == "bytes" else "left")
        for file in self.files:
            table.add_row(file.name, f"{file.size:,}", file.state or "")
        for one in self.left_out:
            table.add_row(one.name, f"{one.size:,}", "stays here")
        console.print(table)
        done = f"would go to {self.url}" if self.dry_run else f"are at {self.url}" + ("" if self.commit else " already")
        console.print(f"\n{self.size:,} bytes {done} ({self.revision}).", soft_wrap=True)


@checked
def push(
    run: str | Path | Run, *, to: str, dry_run: bool = False, private: bool = False, revision: str | None = None
) -> Pushed:
    """Upload the model of a run as one commit; what is there under other names stays.

    Files that are there with another content are replaced, which is said before it is done; their history stays on the
    hub. The token is that of `hf auth login` or HF_TOKEN; HF_ENDPOINT names another hub.

    Args:
        run: a run, its directory, or a model directory in Hugging Face's layout.
        to: NAME/MODEL, which is made where there is none.
        dry_run: tell what would go up and what would be replaced; send nothing.
        private: of a model that is made: nobody else sees it.
        revision: the branch, which is made where there is none; main without it.

    Raises:
        UserError: no model, no such name, no right to write there, the hub cannot be reached, or its library is not
            installed.
    """
    if not NAME.fullmatch(to):
        raise UserError(f"{shown(to)} is no name of a model on the hub; write NAME/MODEL, such as me/my-model.")
    branch = "main" if revision is None else revision
    if not BRANCH.fullmatch(branch):
        raise UserError(f"{shown(branch)} is no name of a branch; write one such as main or v2.")
    source = run.directory if isinstance(run, Run) else expanded(run)
    model = find_model(source)
    require_whole(model)
    files, left_out = _sorted(source, model)
    api = _open_hub()
    with _hub_at_work(to):
        there, parent = _asked(api, to, branch, dry_run)
        listed = [File(name, size, _state(model / name, name, to, there)) for name, size in files]
        pushed = Pushed(to, f"{api.endpoint}/{to}", branch, listed, left_out, dry_run)
        if dry_run or all(file.state == SAME for file in listed):
            return pushed
        _say_what_is_replaced(pushed)
        commit = _send(api, model, pushed, private, parent)
    return replace(pushed, commit=commit)


def _sorted(source: Path, model: Path) -> tuple[list[tuple[str, int]], list[LeftOut]]:
    """The files of a model that go up, with their sizes, and what of it and of its run stays."""
    found = [path for path in sorted(model.rglob("*")) if path.is_file()]
    goes = [path for path in found if path.suffix in SENT and not _hidden(path.relative_to(model))]
    beside = sorted(path for path in source.iterdir() if path != model) if source != model else []
    stays = [*beside, *(path for path in found if path not in goes)]
    files = [(path.relative_to(model).as_posix(), path.stat().st_size) for path in goes]
    return files, [LeftOut(path.relative_to(source).as_posix(), _bytes(path)) for path in stays]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _bytes(path: Path) -> int:
    """Of a file, or of all files in a directory."""
    within = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in within if not file.is_dir())


# -- the hub -------------------------------------------------------------------------------------------------


def _open_hub() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError("Pushing needs the huggingface_hub library: pip install 'selfsup[hub]'.") from None
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="selfsup")


@contextmanager
def _hub_at_work(to: str) -> Iterator[None]:
    """What the hub's library raises in the block becomes a UserError."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise UserError(f"'{to}' is no name of a model on the hub ({error}); write NAME/MODEL.") from None
    except LocalTokenNotFoundError:
        raise UserError("The hub wants to know who you are: hf auth login, or set HF_TOKEN.") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"The hub lets you not write to {to} ({status}): hf auth login, or set HF_TOKEN to a token that may."
            ) from None
        if status == 412:
            raise UserError(f"Somebody else has changed {to} in the meantime; look at it, then push again.") from None
        raise UserError(f"The hub refused {to}: {_short(error)}; try again later.") from None
    except _unreached() as error:
        raise UserError(f"The hub cannot be reached ({_short(error)}); try again later.") from None


def _unreached() -> tuple[type[Exception], ...]:
    """What tells that nothing was reached: errors of the system, and those that the library's client has of its own."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # whichever client it has

    return OSError, HTTPError


def _short(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _asked(api: Any, to: str, branch: str, dry_run: bool) -> tuple[dict[str, set[str]] | None, str | None]:
    """As `_there`; a dry run goes without an answer where the hub cannot be reached, and says so."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return _there(api, to, branch)
    except HfHubHTTPError:
        raise
    except _unreached() as error:
        if not dry_run:
            raise
        log.warning("The hub cannot be reached (%s), so what is there already is not known.", _short(error))
        return None, None


def _there(api: Any, to: str, branch: str) -> tuple[dict[str, set[str]], str | None]:
    """The files of a branch by name, each with its checksums, and the commit; nothing where there is no such branch."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = api.model_info(to, revision=branch, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return {}, None
    return {one.rfilename: {str(one.blob_id), str(one.lfs and one.lfs.sha256)} for one in info.siblings or ()}, info.sha


def _state(path: Path, name: str, to: str, there: dict[str, set[str]] | None) -> str | None:
    """What is there under a name, None where that is not known."""
    if there is None:
        return None
    if name not in there:
        return NEW
    content = _content(path, name, to)
    return SAME if there[name] & _checksums(content) else CHANGED


def _content(path: Path, name: str, to: str) -> Path | bytes:
    """What goes up under a name: the file, or of a card what it says there."""
    return path.read_text(encoding="utf-8").replace(HERE, to).encode() if name == CARD else path


def _checksums(content: Path | bytes) -> set[str]:
    """The names that git, and its storage of large files, have for a content."""
    data = content.read_bytes() if isinstance(content, Path) else content
    return {hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), hashlib.sha256(data).hexdigest()}


def _say_what_is_replaced(pushed: Pushed) -> None:
    replaced = [file.name for file in pushed.files if file.state == CHANGED]
    if replaced:
        log.warning("%s has %s already, which is replaced; its history keeps it.", pushed.to, ", ".join(replaced))


def _send(api: Any, model: Path, pushed: Pushed, private: bool, parent: str | None) -> str:
    """Make what is not there, and one commit on it, which is refused where it is no longer what was looked at."""
    from huggingface_hub import CommitOperationAdd

    to = pushed.to
    api.create_repo(to, private=private or None, exist_ok=True)
    if pushed.revision != "main":
        api.create_branch(to, branch=pushed.revision, exist_ok=True)
    given = [(file.name, _content(model / file.name, file.name, to)) for file in pushed.files if file.state != SAME]
    operations = [CommitOperationAdd(name, content) for name, content in given]
    made = api.create_commit(
        to, operations, commit_message="A model of selfsup", revision=pushed.revision, parent_commit=parent
    )
    return str(made.oid)
