"""The guard before everything that is served: who is let in, how much they may send, what a browser may do with it.

A server on one's own machine is reached by every page that is open in one's browser. So whoever asks is let in by a
secret (`Token`, `Key`), by the name that they asked for (a stranger's own name, pointed at this machine, would make
their page one of ours: DNS rebinding) and by the page that they come from (cross-site requests).
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfsup.data.images.decoding import BadImage, size_of
from selfsup.errors import UserError
from selfsup.files import expanded

LOOPBACK = "127.0.0.1"
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
MOST_BYTES = 1 << 25  # of a request
MOST_PIXELS = 1 << 25  # of an image that is sent
NOTHING = "default-src 'none'; frame-ancestors 'none'"  # the policy of what is no page
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def page_policy(nonce: str) -> str:
    """What a page of ours may load: its own modules and the import map that bears the nonce, nothing of other hosts."""
    return (
        f"default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'nonce-{nonce}'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@dataclass(frozen=True)
class Admission:
    """Whether somebody is let in, and what they are to keep of it."""

    granted: bool
    cookie: str | None = None


class Door(Protocol):
    """Who is let in by a secret."""

    refusal: str

    def admit(self, headers: dict[str, str], query: dict[str, list[str]]) -> Admission: ...


@dataclass(frozen=True)
class Token:
    """For browsers: a random word in the address, exchanged for a cookie that pages of other sites cannot send."""

    port: int  # cookies are of a host, not of a port
    word: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    session: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    refusal = "Open the address that the command printed; it ends with a token that lets you in."

    @property
    def name(self) -> str:
        return f"selfsup-{self.port}"

    def admit(self, headers: dict[str, str], query: dict[str, list[str]]) -> Admission:
        try:
            kept = SimpleCookie(headers.get("cookie", "")).get(self.name)
        except CookieError:
            kept = None
        if kept is not None and _same(kept.value, self.session):
            return Admission(True)
        given = query.get("token", [""])[0]
        cookie = f"{self.name}={self.session}; Path=/; HttpOnly; SameSite=Strict"
        return Admission(True, cookie) if _same(given, self.word) else Admission(False)


@dataclass(frozen=True)
class Key:
    """For programs: `Authorization: Bearer KEY`; without a key, everyone who reaches the address."""

    key: str | None = field(default=None, repr=False)
    refusal = "Give the key of this server: Authorization: Bearer KEY."

    def admit(self, headers: dict[str, str], query: dict[str, list[str]]) -> Admission:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return Admission(self.key is None or (scheme.lower() == "bearer" and _same(given.strip(), self.key)))


def _same(given: str, secret: str) -> bool:
    """In a time that says nothing of the secret."""
    return hmac.compare_digest(given.encode(), secret.encode())


@dataclass(frozen=True)
class Guard:
    """An ASGI application behind its guard.

    Args:
        app: what is guarded.
        host: the address that it is bound to.
        door: who is let in by a secret.
        most_bytes: of the body of a request.
    """

    app: ASGIApp
    host: str
    door: Door
    most_bytes: int = MOST_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket: there are none
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        query = parse_qs(scope["query_string"].decode("latin-1"))
        problem, admission = self._stranger(headers), self.door.admit(headers, query)
        if problem is not None:
            await refuse(send, 403, problem)
        elif not admission.granted:
            await refuse(send, 401, self.door.refusal)
        elif _length(headers) > self.most_bytes:
            await refuse(send, 413, self._too_much)
        else:
            await self.app(scope, self._bounded(receive), _with_headers(send, admission.cookie))

    def _stranger(self, headers: dict[str, str]) -> str | None:
        """Why a request is not from here, by the name it asked for and the page that made it; None where it is."""
        asked = headers.get("host", "")
        if not self._is_ours(asked):
            return "This server does not go by that name; ask for it by the address that the command printed."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != asked.lower():
            return "Pages of other sites have no access."
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
            return "Pages of other sites have no access."
        return None

    def _is_ours(self, asked: str) -> bool:
        """Whether a Host names this machine in a way that nobody else can point here: not by a name of their own."""
        try:
            name = urlsplit(f"//{asked}").hostname or ""
        except ValueError:
            return False
        if name in LOCAL_NAMES:
            return True
        if is_loopback(self.host):
            return False
        return name in (self.host.lower(), socket.gethostname().lower()) or _is_address(name)

    @property
    def _too_much(self) -> str:
        return f"A request may have {self.most_bytes:,} bytes; send less."

    def _bounded(self, receive: Receive) -> Receive:
        """What receives a body, and no more of it than is allowed, whatever its length was said to be."""
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.most_bytes:
                raise HTTPException(413, self._too_much)
            return message

        return bounded


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _length(headers: dict[str, str]) -> int:
    said = headers.get("content-length", "0")
    return int(said) if said.isascii() and said.isdigit() else 0  # the server itself refuses what is no number


def _with_headers(send: Send, cookie: str | None) -> Send:
    """What sends an answer with the headers of all answers, where it does not say otherwise itself."""
    added = {**HEADERS, "content-security-policy": NOTHING} | ({} if cookie is None else {"set-cookie": cookie})

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.decode("latin-1") for name, _ in message["headers"]}
            extra = [(name.encode(), value.encode()) for name, value in added.items() if name not in given]
            message = {**message, "headers": [*message["headers"], *extra]}
        await send(message)

    return guarded


async def refuse(send: Send, status: int, sentence: str) -> None:
    """An error as all answers here give it."""
    content = json.dumps(failure(sentence)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    guarded = _with_headers(send, None)
    await guarded({"type": "http.response.start", "status": status, "headers": headers})
    await guarded({"type": "http.response.body", "body": content})


def failure(
    sentence: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """What an answer says that is none, as clients of OpenAI's expect it.

    Args:
        kind: of failure, in OpenAI's words.
        param: the field of the request that it is about.
        code: what programs tell it by, where it has one.
    """
    return {"error": {"message": sentence, "type": kind, "param": param, "code": code}}


# -- what is sent, and named -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folders:
    """The folders that were given at the start; nothing outside of them is read or written."""

    places: Sequence[Path]

    @classmethod
    def of(cls, places: Sequence[str | Path]) -> Folders:
        """Raises a UserError where one is no folder."""
        found = [expanded(place) for place in places]
        for place in found:
            if not place.is_dir():
                raise UserError(f"{place} is no folder; give one that is there, or make it.")
        return cls([place.resolve() for place in found])

    def inside(self, name: str) -> Path:
        """What a path stands for, links resolved: a relative one in the first folder that has it, or in the first one.

        Raises:
            UserError: it leads out of all of them.
        """
        places = [os.path.join(place, name) for place in self.places]
        found = Path(os.path.realpath(next(filter(os.path.lexists, places), places[0]).replace("\0", "")))
        if "\0" in name or not any(found.is_relative_to(place) for place in self.places):
            allowed = ", ".join(map(str, self.places))
            raise UserError(f"{name:.200} lies outside of the folders that were given at the start ({allowed}).")
        return found


def require_image(content: bytes) -> bytes:
    """An image that was sent, as it is; raises a UserError where it is none, or has too many pixels."""
    try:
        height, width = size_of(content)
    except BadImage as problem:
        raise UserError(f"The image cannot be read: {problem}.") from None
    if height * width > MOST_PIXELS:
        raise UserError(f"The image has {width:,} by {height:,} pixels; send one of at most {MOST_PIXELS:,}.")
    return content
