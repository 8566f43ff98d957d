"""The one front end: pages of one file and of a server, from the same template and modules."""

from __future__ import annotations

import base64
import json
import re
from importlib.resources import files

import pytest

from selfsup import pages

LINES = 2500  # of all modules; the two files of style come to some 300 more


def import_map(page: str) -> dict[str, str]:
    found = re.search(r'<script type="importmap"[^>]*>(.*?)</script>', page)
    assert found is not None
    imports: dict[str, str] = json.loads(found[1])["imports"]
    return imports


def test_a_page_holds_all_modules_that_it_needs_and_no_others() -> None:
    imports = import_map(pages.self_contained("t", "charts.js", {}))
    assert set(imports) == {"selfsup/charts.js", "selfsup/dom.js"}
    for name, place in imports.items():
        content = base64.b64decode(place.removeprefix("data:text/javascript;base64,")).decode()
        assert content == pages.assets().joinpath(name.removeprefix("selfsup/")).read_text(encoding="utf-8")


@pytest.mark.parametrize("module", pages.modules())
def test_every_module_imports_what_there_is(module: str) -> None:
    text = pages.assets().joinpath(module).read_text(encoding="utf-8")
    assert {f"selfsup/{name}" for name in pages.modules()} >= set(re.findall(r'from "([^"]+)"', text))


@pytest.mark.parametrize("module", pages.modules())
def test_no_module_makes_markup_of_text_or_asks_another_host(module: str) -> None:
    text = pages.assets().joinpath(module).read_text(encoding="utf-8")
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert forbidden not in text
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_data_never_ends_its_script_and_arrives_as_it_was() -> None:
    data = {"a": "</script><script>alert(1)</script><!--", "b": ["\u2028", "é", "\ud800"]}
    page = pages.self_contained("<b>&", "dom.js", data)
    assert "<title>&lt;b&gt;&amp;</title>" in page
    assert "alert(1)</script>" not in page
    (held,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert json.loads(held) == data
    page.encode()


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        pages.self_contained("t", "dom.js", {"loss": float("nan")})


def test_a_server_gives_its_own_files_under_a_nonce() -> None:
    page = pages.shell("selfsup", "dom.js", "n0nce")
    assert import_map(page)["selfsup/dom.js"] == "/assets/dom.js"
    assert page.count('nonce="n0nce"') == len(re.findall(r"<script(?! type=.application)", page))
    assert '<link rel="stylesheet" href="/assets/style.css">' in page
    assert "data:text/javascript" not in page


def test_the_front_end_stays_small() -> None:
    texts = [pages.assets().joinpath(name).read_text(encoding="utf-8") for name in pages.modules()]
    assert sum(text.count("\n") for text in texts) < LINES


def test_no_python_holds_markup() -> None:
    for path in files("selfsup").rglob("*.py"):  # type: ignore[attr-defined]
        assert not re.search(r"<(div|html|script|svg|span|table)\b", path.read_text(encoding="utf-8")), path
