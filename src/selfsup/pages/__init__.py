"""The one front end: how its modules become a page, alone in a file or on a server.

The modules in `assets/` import one another by bare names, `selfsup/dom.js` or `selfsup/studio/app.js`; an import map
says where those lie: within the page itself, or at /assets/ of a server. Nothing here writes HTML, CSS or JavaScript:
the template escapes by itself, and the modules make text nodes of whatever comes from data.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from selfsup.report import CONTROLS

ASSETS = "/assets/"  # where a server has the files of `assets/`
STYLE = "style.css"


def assets() -> Traversable:
    """The folder with the modules and the style."""
    return files(__package__).joinpath("assets")


def modules(folder: str = "") -> list[str]:
    """The names of all modules, such as `dom.js` and `studio/app.js`."""
    found = []
    for entry in assets().joinpath(folder).iterdir() if folder else assets().iterdir():
        name = f"{folder}/{entry.name}" if folder else entry.name
        found += modules(name) if entry.is_dir() else [name] if name.endswith(".js") else []
    return sorted(found)


def self_contained(title: str, module: str, data: Any) -> str:
    """A page in one file, which needs nothing beside itself.

    Args:
        title: of its window.
        module: the name of the module whose `draw(data)` makes the element that is shown, such as `report.js`.
        data: what JSON can hold; a number that is not finite is not among it.
    """
    places = {name: _data_url(name) for name in _needed(module)}
    return _template().render(
        title=title,
        module=module,
        imports=_json(_import_map(places)),
        data=_json(data),
        style=Markup(_content(STYLE)),
        nonce=None,
        policy="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline' data:",
    )


def shell(title: str, module: str, nonce: str, data: Any = None) -> str:
    """The same page on a server, whose content security policy lets scripts of this nonce run, and its own files."""
    places = {name: ASSETS + name for name in modules()}
    return _template().render(
        title=title,
        module=module,
        imports=_json(_import_map(places)),
        data=_json(data),
        style=None,
        stylesheet=ASSETS + STYLE,
        nonce=nonce,
        policy=None,
    )


def _import_map(places: dict[str, str]) -> dict[str, dict[str, str]]:
    return {"imports": {f"selfsup/{name}": place for name, place in places.items()}}


@cache
def _needed(module: str) -> list[str]:
    """A module and all that it imports, directly or not."""
    needed, found = [module], {name: f'"selfsup/{name}"' for name in modules()}
    for name in needed:
        text = _content(name)
        needed += [other for other, quoted in found.items() if quoted in text and other not in needed]
    return needed


def _data_url(name: str) -> str:
    return f"data:text/javascript;base64,{base64.b64encode(_content(name).encode()).decode()}"


@cache
def _content(name: str) -> str:
    return assets().joinpath(name).read_text(encoding="utf-8")


def _json(value: Any) -> Markup:
    """JSON that no HTML ends early: `<` and controls stand in strings alone, as escapes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(CONTROLS.sub(lambda found: json.dumps(found[0])[1:-1], text).replace("<", "\\u003c"))


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
