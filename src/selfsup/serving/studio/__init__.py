"""The studio: a page on the user's own machine, for what lies below a folder of runs.

`app.py` puts it together; there is a file for each group of pages: `runs.py` (what was and is being trained),
`inspecting.py`, `starting.py`, `trying.py`, `libraries.py`. All of them answer with JSON as commands print it with
`--json`; what is drawn of it lies in `selfsup.pages`.
"""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

from selfsup.arguments import checked
from selfsup.errors import UserError

PORT = 8712


@checked
def studio(
    runs: str | Path = Path("runs"),
    *,
    data: Sequence[str | Path] = (),
    host: str = "127.0.0.1",
    port: int = PORT,
    browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the studio until it is asked to stop, by Ctrl-C or a signal.

    Args:
        runs: the folder below which runs and libraries lie, and new runs are made.
        data: further folders that pages may read data, models and libraries from; nothing outside of all of them.
        host: the address to be reached at; other machines reach it only by another one than this.
        port: 0 takes a free one.
        browser: whether a browser is opened, where there is a screen.
        say: what is told the address, and that it has ended.

    Raises:
        UserError: a folder is not there, the address cannot be had, or the packages of the studio are not installed.
    """
    try:
        from selfsup.serving.guard import Folders, Guard, Token
        from selfsup.serving.server import Server, address_of, bound
        from selfsup.serving.studio.app import make_app
        from selfsup.serving.studio.shared import Studio
    except ImportError as error:
        raise UserError(f"The studio needs FastAPI and uvicorn ({error}): pip install 'selfsup[studio]'.") from None
    shared = Studio(Folders.of([runs, *data]))
    with bound(host, port) as taken:
        door = Token(taken.getsockname()[1])
        address = f"{address_of(taken, host)}/?token={door.word}"
        server = Server(Guard(make_app(shared), host, door))
        shared.ending = lambda: server.should_exit
        say(f"The studio is at {address}\nStop it with Ctrl-C.")
        if browser and _has_screen():
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        server.run([taken])
    say(shared.farewell())


def _has_screen() -> bool:
    """Whether a browser would have a window; one for terminals would take this one."""
    return sys.platform in ("win32", "darwin") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
