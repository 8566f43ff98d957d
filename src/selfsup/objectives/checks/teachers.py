"""What objectives look for whose targets are what a teacher says of texts."""

from __future__ import annotations

from selfsup.checks import History, Symptom, warning

CUT = 0.1  # of the texts


@warning(
    seen="{value:.0%} of the texts are longer than {window} tokens: the student answers without having read their end",
    why="its teacher may have read on, and nothing in what is left says what stood there",
    remedy="a larger window: {train} data.window={double}",
)
def cut_texts(history: History) -> Symptom | None:
    """Many texts that lose their end."""
    share, window = history.count("cut") / max(1, history.count("texts")), history.setting("data.window")
    figures = {"window": window, "double": 2 * window}
    return Symptom(share, CUT, step=0, figures=figures) if share > CUT else None
