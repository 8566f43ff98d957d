"""Models behind an API that existing clients speak: OpenAI's for texts that go on from prompts and for vectors, and
beside it what else models here can do.

`schemas.py` is what is asked and answered, `completions.py` and `vectors.py` are the routes, `models.py` knows what is
served, and `batching.py` computes: one thread for each model, in which requests join and leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from selfsup.arguments import checked
from selfsup.errors import UserError

PORT = 8000


@checked
def serve(
    models: Sequence[str],
    *,
    library: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = PORT,
    api_key: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    say: Callable[[str], None] = print,
) -> None:
    """Serve models until the server is asked to stop, by Ctrl-C or a signal.

    Args:
        models: runs or model directories, each called by the last part of its path, or by a name of its own: NAME=PATH.
        library: what `/v1/search` looks through, made by `index`.
        host: the address to be reached at; other machines reach it only by another one than this.
        port: 0 takes a free one.
        api_key: what clients have to send; without one, everyone who reaches the address is answered.
        precision: of decoders, as `LanguageModel.generate` takes it.
        say: what is told the address, and that it has ended.

    Raises:
        UserError: a model or library cannot be opened, the address cannot be had, or the packages are not installed.
    """
    try:
        from selfsup.serving.api.app import make_app
        from selfsup.serving.api.models import Models
        from selfsup.serving.guard import Guard, Key
        from selfsup.serving.server import Server, address_of, bound
    except ImportError as error:
        raise UserError(f"The API needs FastAPI and uvicorn ({error}): pip install 'selfsup[studio]'.") from None
    if not models:
        raise UserError("No model is given; give runs or model directories, such as: selfsup serve runs/x")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise UserError("The API key is no word of printable ASCII; give another --api-key.")
    with bound(host, port) as taken:
        opened = Models(models, library, device, precision)
        names = ", ".join(f"{one.name} ({one.model.kind})" for one in opened.served)
        say(f"{address_of(taken, host)}/v1 serves {names}.\nStop it with Ctrl-C.")
        try:
            Server(Guard(make_app(opened), host, Key(api_key))).run([taken])
        finally:
            opened.close()
    say("The server has ended.")
