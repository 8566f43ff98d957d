"""What lies in a model directory, which may be a stranger's: read within bounds, never run.

JSON and safetensors are read, files of the directory alone, nothing is fetched for it. Whatever it asks for beyond that
is refused, or passed over where it can be opened without.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from selfsup.errors import UserError
from selfsup.files import expanded, opened, read_bytes
from selfsup.run_files import RUN_CONFIG, RUN_MODEL

CONFIG, ADAPTER = "config.json", "adapter_config.json"
# Files that name code of their own (`auto_map`).
NAMING = (CONFIG, "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
# Endings of what is read here or by transformers.
OPENED = (".json", ".safetensors", ".txt", ".model", ".jinja")
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
MODULES = "modules.json"  # of sentence-transformers: the steps from a text or an image to its vector
# What names a table of token vectors: the first of the steps, and model2vec's type of model.
TABLE_STEP, TABLE_TYPE = "StaticEmbedding", "model2vec"
# Keys of a part of a network that timm is to build, or fetch.
TIMM = ("architecture", "backbone", "use_timm_backbone")
MOST_JSON = 32 << 20  # bytes of a file
MOST = 1 << 24  # of any size, such as tokens, positions and widths
MOST_SIDE = 1 << 13  # pixels of the images that a network is made for
MOST_LABELS = 1 << 16
# How names of what a network has many of end.
COUNTED = ("layer", "layers", "blocks", "depth", "depths", "experts")
# What weights may be of; other kinds are quantised.
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
KINDS = FLOATS | {torch.int32, torch.int64, torch.uint8, torch.bool}

log = logging.getLogger(__name__)


# -- where it lies ----------------------------------------------------------------------------------------


def find_model(path: str | Path) -> Path:
    """The model directory of a run, or a model directory itself; raises UserError where there is none."""
    directory = expanded(path)
    if (directory / RUN_CONFIG).is_file():
        if not (directory / RUN_MODEL).is_dir():
            raise UserError(f"{directory} has no model yet; finish it with --resume {directory}.")
        return directory / RUN_MODEL
    if not os.path.lexists(directory):
        raise UserError(f"There is no {path}; give the directory of a run or of a model.")
    if not (directory / CONFIG).is_file() and table_place(directory) is None:
        raise UserError(f"{path} is neither a run nor a model directory (no {RUN_CONFIG} or {CONFIG} in it).")
    return directory


def table_place(directory: Path) -> Path | None:
    """Where a directory holds a table of token vectors in place of a network, which needs no config.json: beside the
    tokenizer that sentence-transformers or model2vec put there. None where it holds another model."""
    if (directory / MODULES).is_file():
        first = next(iter(read_json_list(inside(directory, MODULES))), {})
        if str(first.get("type")).rpartition(".")[2] == TABLE_STEP:
            return inside(directory, str(first.get("path")))
    if (directory / CONFIG).is_file() and read_json(directory / CONFIG).get("model_type") == TABLE_TYPE:
        return directory
    return None


# -- what a directory asks for -------------------------------------------------------------------------------


def read_config(directory: Path) -> dict[str, Any]:
    """What the config.json of a model directory says, nothing where a table of token vectors has none. Python code that
    it names is passed over, and that is said.

    Raises UserError where another model has none, or more would have to be opened than it holds: it is an adapter of
    another model, names kernels, weights or networks that lie elsewhere, or has links that lead out of it.
    """
    for path in sorted(directory.glob("*")):
        if path.suffix in OPENED:
            inside(directory, path.name)
    if (directory / ADAPTER).exists():
        raise UserError(f"{directory} holds an adapter of another model; merge the two and give what comes of it.")
    bare = not (directory / CONFIG).exists() and table_place(directory) is not None
    config, names = {} if bare else read_json(directory / CONFIG), "architectures"
    if not isinstance(config.get("model_type"), str | None):
        raise broken(directory / CONFIG, "model_type", config["model_type"])
    said = [] if config.get(names) is None else config[names]
    if not (isinstance(said, list) and all(isinstance(name, str) for name in said)):
        raise broken(directory / CONFIG, names, config[names])
    for part in _objects(config):
        _refuse_elsewhere(part, directory / CONFIG)
    if code := own_code(directory):
        _say_once(f"{directory} names Python code of its own ({code}), which is not run.")
    return config


def own_code(directory: Path) -> str:
    """The Python code that the files of a directory name, with commas; empty where they name none."""
    maps = (read_json(directory / name).get("auto_map") for name in NAMING if (directory / name).exists())
    entries = [entry for named in maps if isinstance(named, dict) for entry in named.values()]
    places = [place for entry in entries for place in listed(entry) if place]
    return ", ".join(dict.fromkeys(map(str, places)))


def forget_code(directory: Path) -> None:
    """Take out of the files of a directory what names code, which was not run and is not there."""
    for path in (directory / name for name in NAMING):
        if path.exists() and (content := read_json(path)).pop("auto_map", None):
            write_json(path, content)


@cache
def _say_once(message: str) -> None:
    log.warning(message)


def _refuse_elsewhere(part: dict[str, Any], path: Path) -> None:
    """Raise a UserError where an object of a config.json has transformers look for something outside it."""
    for key in ("attn_implementation", "experts_implementation"):
        asked = part.get(key) or part.get(f"_{key}")
        if any("/" in str(name) for name in (asked.values() if isinstance(asked, dict) else [asked])):
            raise UserError(f"{path} asks for kernels of others ({key} {asked}), which are not run; take it out.")
    if part.get("transformers_weights") is not None:
        raise UserError(f"{path} names other weights than {WEIGHTS} (transformers_weights); take it out.")
    if "model_type" in part and any(part.get(key) for key in TIMM):
        raise UserError(f"{path.parent} has a part that timm builds, which is not opened; give a model without one.")
    if part.get("quantization_config") is not None:
        raise UserError(f"{path.parent} holds quantised weights; load the model's unquantised release")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object within a value, itself among them."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()


def require_whole(directory: Path) -> None:
    """Raise a UserError where anything within a directory leads out of it, or is neither a file nor a directory."""
    for path in sorted(directory.rglob("*")):
        found = inside(directory, path.relative_to(directory).as_posix())
        if not (found.is_file() or found.is_dir()):
            raise UserError(f"{found} is no regular file; take it out of {directory}.")


def inside(directory: Path, name: str) -> Path:
    """What has a name in a model directory; raises UserError where it lies, or a link leads, outside.

    In the cache of the hub, a model's files are links into a directory beside it, `blobs`.
    """
    path, root = directory / name, Path(os.path.realpath(directory))
    if root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir():
        root = root.parent.parent
    try:
        leads_out = not Path(os.path.realpath(path)).is_relative_to(root)
    except ValueError:  # no name that a file can have
        leads_out = True
    if leads_out:
        raise UserError(f"{path} leads out of the model's directory; put there what it leads to.")
    return path


# -- what it says of sizes -----------------------------------------------------------------------------------


def whole(value: Any, least: float = 1, most: float = MOST) -> bool:
    """Whether a value is a whole number within bounds."""
    return type(value) is int and least <= value <= most


def number(value: Any, least: float = -1e30) -> bool:
    """Whether a value is a number, and no absurd one."""
    return type(value) in (int, float) and least <= value <= 1e30


def damaged(what: str) -> UserError:
    """What is said where something of a model is missing, unreadable, or does not fit the rest."""
    return UserError(f"{what}; get a whole copy of the model.")


def broken(path: Path, key: str, value: Any) -> UserError:
    """What is said of a value that no model has."""
    return damaged(f"{path} is broken ({key} is {shown(value)})")


def listed(value: Any) -> list[Any]:
    """One value or several, as a list."""
    return value if isinstance(value, list) else [value]


def shown(value: Any) -> str:
    """A value in a message, as far as a line has room for it."""
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}…"


def refuse_absurd(config: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise a UserError where a config has numbers that no network of its weights has: more layers than tensors, labels
    by the million, other sizes beyond all bounds."""
    for part in _objects(config):
        for key, value in part.items():
            most = MOST_LABELS if key in ("num_labels", "num_classes") else MOST
            most = max(len(weights), 1) if key.split("_")[-1] in COUNTED else most
            if "theta" not in key and any(type(size) is int and abs(size) > most for size in listed(value)):
                raise broken(path, key, value)


# -- files ---------------------------------------------------------------------------------------------------


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The weights of a model, of one file or of several that an index names, as they lie there."""
    return {name: w for path in _weight_files(directory) for name, w in read_safetensors(path).items()}


def _weight_files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if (directory / WEIGHTS).exists() or not index.exists():
        return [directory / WEIGHTS]
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise damaged(f"{index} names no file for each weight (weight_map)")
    return [inside(directory, name) for name in sorted(set(named.values()))]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped into memory; raises UserError where it is damaged, or holds what is no number."""
    if not path.exists():
        raise UserError(f"{path} is missing; only safetensors weights are loaded, so get or convert the model to it")
    try:
        with opened(path):  # a plain file
            weights: dict[str, Tensor] = load_file(path)
    except Exception as error:  # of kinds that the library does not state
        raise damaged(f"{path} cannot be read ({error})") from None
    for name, tensor in weights.items():
        if tensor.dtype not in KINDS:
            raise UserError(f"{path} holds {name} as {tensor.dtype}; get the model's unquantised release")
        filled = tensor.is_floating_point() and tensor.numel()
        if filled and not torch.stack(tensor.aminmax()).isfinite().all():
            raise damaged(f"{path} holds numbers that are none in {name} (NaN or infinite)")
    return weights


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object."""
    content = _parse(path)
    if not isinstance(content, dict):
        raise damaged(f"{path} is not a JSON object")
    return content


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """A file that holds a list of JSON objects."""
    content = _parse(path)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise damaged(f"{path} is not a list of JSON objects")
    return content


def _parse(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path, MOST_JSON).decode())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; name a directory in Hugging Face's layout") from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(f"{path} cannot be read ({error})") from None


def write_json(path: Path, content: dict[str, Any] | list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
