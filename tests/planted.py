"""Model directories that try to have something run: code that their files name, code by the names that programs look
for, pickles in every name of weights. Whatever of it runs leaves a mark."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

CODE = "modeling_planted"
MAP: dict[str, Any] = {
    **{f"Auto{name}": f"{CODE}.Planted" for name in ("Config", "Model", "ModelForMaskedLM", "ModelForCausalLM")},
    **{f"Auto{name}": f"{CODE}.Planted" for name in ("ImageProcessor", "Processor", "FeatureExtractor")},
    "AutoTokenizer": [f"{CODE}.Planted", f"{CODE}.Planted"],
}
NAMED = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
RUN = (f"{CODE}.py", "custom_generate/generate.py", "sitecustomize.py", "hubconf.py", "conftest.py", "setup.py")
PICKLED = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.ckpt", "probe.joblib", "model.pkl")


class Bomb:
    """What leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def plant(directory: Path, mark: Path, **config: Any) -> Path:
    """Put traps that touch `mark` into a model directory, and other values into its config.json."""
    for name in NAMED:
        path = directory / name
        if path.exists() or name == "processor_config.json":
            content = json.loads(path.read_text()) if path.exists() else {"processor_class": "Planted"}
            path.write_text(json.dumps(content | {"auto_map": MAP} | (config if name == "config.json" else {})))
    for name in RUN:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(
            f"from pathlib import Path\nPath({str(mark)!r}).touch()\nPlanted = generate = None\n"
        )
    for name in PICKLED:
        (directory / name).write_bytes(pickle.dumps(Bomb(mark)))
    return directory


def planted_copy(source: Path, directory: Path, mark: Path, **config: Any) -> Path:
    shutil.copytree(source, directory)
    return plant(directory, mark, **config)
