"""Faults by the hundred: `python tests/faults/faults.py [--kills N] [--seconds S] [--seed S] [--out FILE] …`.

Trainings of all objectives are killed at random moments and go on, see `kills.py`; then each of the other faults, see
`others.py`. What happened is printed, and written as JSON lines to `--out`; the exit code is 1 where anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from kills import campaign
from others import FAULTS

from selfsup.models.parity import import_transformers


def main() -> int:
    parser = argparse.ArgumentParser(description="Faults by the hundred.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--each", type=int, default=4, help="kills of one training, at most")
    parser.add_argument("--seconds", type=float, default=7200.0, help="for the kills")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--trainings", nargs="*", default=[], help="of these names alone, such as 'dino by 2'")
    parser.add_argument("--faults", nargs="*", help="other faults with one of these words alone; none of them for none")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="selfsup-faults-"))
    os.environ["SELFSUP_CACHE"] = str(place / "cache")
    import_transformers()  # which each of the many processes would do by itself
    print(f"seed {given.seed}, in {place}", flush=True)
    lines: list[dict[str, Any]] = []

    def tell(what: str, kills: int, problem: str | None) -> None:
        lines.append({"what": what, "kills": kills, "problem": problem})
        print(f"{what}: {f'{kills} kills, ' if kills else ''}{problem or 'the same'}", flush=True)
        if given.out:
            given.out.write_text("".join(json.dumps(line) + "\n" for line in lines))

    for outcome in campaign(place, given.seed, given.kills, given.each, given.seconds, given.trainings):
        tell(outcome.label, outcome.kills, outcome.problem)
    chosen = {
        what: happen
        for what, happen in FAULTS.items()
        if given.faults is None or any(word in what for word in given.faults)
    }
    for number, (what, happen) in enumerate(chosen.items()):
        folder = place / f"fault {number}"
        folder.mkdir()
        try:
            happen(folder)
            tell(what, 0, None)
        except ImportError as error:
            tell(what, 0, f"not run: {error}")
        except Exception:
            tell(what, 0, traceback.format_exc())
    wrong = [line for line in lines if line["problem"] and not line["problem"].startswith("not run")]
    kills = Counter({line["what"]: line["kills"] for line in lines}).total()
    print(f"{kills} kills and {len(chosen)} other faults, {len(wrong)} of all with losses", flush=True)
    if not wrong:
        shutil.rmtree(place)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
