"""An inspection as one self-contained page: no script or style from elsewhere, light and dark, readable on a phone."""

from __future__ import annotations

from html import escape
from string import Template
from typing import TYPE_CHECKING

from selfsup.report import printable

if TYPE_CHECKING:
    from selfsup.inspection.base import Inspection, Part


def page(inspection: Inspection) -> str:
    """The page as HTML; whatever comes from the data is escaped, controls (such as those of direction) too."""
    facts = f"{sentence(inspection.summary())} {inspection.limits()}"
    text = PAGE.substitute(
        objective=escape(inspection.objective),
        idea=escape(sentence(inspection.idea)),
        summary=escape(facts.rstrip()),
        style=inspection.style,
        parts="\n".join(map(_section, inspection.parts())),
        script=inspection.script,
    )
    return printable(text)


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def _section(part: Part) -> str:
    title = part.title[:1].upper() + part.title[1:]
    hint = f'<p class="hint">{escape(part.hint)}</p>\n' if part.hint else ""
    return f"<h2>{escape(title)}</h2>\n{hint}{part.html()}"


PAGE = Template("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$objective: what the data teaches</title>
<style>
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --ink: #1f2328; --faint: #6b7079; --line: #e3e0da; --chip: #efece6;
  --seen: #2f6fde; --on-seen: #fff; --wanted: #1f2328; --hot: #e8590c; --ground: #f0eee9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --ink: #e6e4df; --faint: #989da6; --line: #2c3036; --chip: #24282d;
    --seen: #5b93f5; --on-seen: #0d1117; --wanted: #e6e4df; --hot: #ff7b32; --ground: #1d2024;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 6rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1rem; margin: 2.2rem 0 .3rem; }
p { margin: .25rem 0; max-width: 44rem; }
.quiet, .hint { color: var(--faint); font-size: .875rem; }
svg { display: block; width: 100%; height: auto; margin-top: .7rem; }
svg rect { shape-rendering: crispEdges; }
svg text { fill: var(--faint); font: 8.5px ui-monospace, Menlo, Consolas, monospace; }
.wide { overflow-x: auto; margin-top: .7rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem 0 .25rem 1.4rem; white-space: nowrap; }
th { color: var(--faint); font-weight: normal; font-size: .875rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody tr { border-top: 1px solid var(--line); }
$style</style>
<h1>What the data teaches: $objective</h1>
<p>$idea Nobody labels anything: the data itself holds both the question and the answer.</p>
<p class="quiet">$summary</p>

$parts
<script>
$script</script>
</html>
""")
