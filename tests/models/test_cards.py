from __future__ import annotations

import yaml

from selfsup.models.cards import card, data_name, measured


def test_a_card_says_what_is_known() -> None:
    written = card(
        "A model", "It does.", {"Loss": "1", "Layout": "any"}, "import x\n", library="lib", task="t", tags=["a", "b"]
    )
    assert written == (
        "---\nlibrary_name: lib\npipeline_tag: t\ntags: [selfsup, a, b]\n---\n"
        "# A model\n\nIt does.\n\n- Loss: 1\n- Layout: any\n\n```python\nimport x\n```\n"
    )
    assert yaml.safe_load(written.split("---\n")[1])["tags"] == ["selfsup", "a", "b"]


def test_what_is_not_known_is_left_out() -> None:
    assert card("A model", "It does.", {}) == "---\ntags: [selfsup]\n---\n# A model\n\nIt does.\n"


def test_data_goes_by_a_name_and_losses_by_their_unit() -> None:
    names = [data_name(source) for source in ("sample:emoji", "/home/me/books.txt", "hub:owner/name")]
    assert names == ["sample:emoji", "books", "name"]
    assert measured({"loss": 1.23456}, " nats") == "1.2346 nats on the held-out part"
    assert measured({}) == "not measured"
