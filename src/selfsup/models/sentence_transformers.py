"""The layout of sentence-transformers around model directories: what is pooled how, and which model takes what.

DIR/modules.json                        the steps from a text or an image to its vector, in their order
DIR/1_Pooling/config.json               how hidden states become one vector
DIR/2_Dense/                            the linear map that follows, where there is one
DIR/sentence_bert_config.json           tokens that are read of a text, or what is taken of a vision transformer
DIR/config_sentence_transformers.json   how two vectors are compared, what is put before texts, which numbers are kept
DIR/0_StaticEmbedding/                  in place of a network a table of token vectors, also in DIR itself
DIR/router_config.json                  of several models, each in a directory of this layout: what goes to which

That of texts is written as every version since 2 reads it, images need version 6; it writes other names itself, which
are read here too.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup.errors import UserError
from selfsup.models.directories import (
    CONFIG,
    MODULES,
    TABLE_STEP,
    WEIGHTS,
    broken,
    inside,
    number,
    read_config,
    read_json,
    read_json_list,
    write_json,
)
from selfsup.models.features import FEATURES, NAMES, Features, read_kept, read_map, read_own, read_prompts, write_map
from selfsup.models.kinds import TEXT_TOWERS
from selfsup.models.layouts import Layout, at
from selfsup.models.packing import POOLINGS, Pooling

if TYPE_CHECKING:
    from selfsup.models.vision import VisionConfig

LINEAR = "linear."  # what the names of a map begin with
ROUTER = "router_config.json"
SETTINGS = "config_sentence_transformers.json"
TYPE = "sentence_transformers.models."
NORMALIZE = "Normalize"
LENGTH = "sentence_bert_config.json"
POOLING_KEYS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
SHORTEST = 3  # tokens that a text encoder may read: one between two that mark the ends
BACKBONES = {  # of models of these types, whose feature maps are the normalised states of the patches alone
    "dinov3_vit": "DINOv3ViTBackbone",
    "dinov2": "Dinov2Backbone",
    "dinov2_with_registers": "Dinov2WithRegistersBackbone",
}
HIDING = ("vit_mae",)  # types of models whose class hides patches by chance whenever it is used


@dataclass(frozen=True)
class Dense:
    """The shape of a linear map."""

    inputs: int
    outputs: int
    bias: bool


DENSE = Layout(
    Dense,
    name="maps",
    places={"inputs": at("in_features"), "outputs": at("out_features"), "bias": at("bias")},
    fixed={"activation_function": "torch.nn.modules.linear.Identity"},
)


def write_modules(directory: Path, features: Features, width: int, normalized: bool = False) -> None:
    """Beside the files of a model, how its hidden states of `width` numbers become a vector.

    A step normalises the vectors only of a model that was made so, for ours are not; the cosine that compares them does
    not need it.
    """
    pooling = directory / "1_Pooling"
    kinds = {"": "Transformer", pooling.name: "Pooling"}
    chosen = {key: mode == features.pooling for key, mode in POOLING_KEYS.items()}
    pooling.mkdir()
    write_json(pooling / CONFIG, {"word_embedding_dimension": width, **chosen})
    _write_steps(directory, kinds | _write_last(directory, features, normalized, len(kinds)), features)


def write_table_steps(directory: Path, features: Features, normalized: bool = False) -> None:
    """The same beside a table of token vectors, which is the first step."""
    _write_steps(directory, {"": TABLE_STEP} | _write_last(directory, features, normalized, 1), features)


def _write_last(directory: Path, features: Features, normalized: bool, number: int) -> dict[str, str]:
    """The steps behind the pooling, from that number on: where there is one a map, which is written, and where it is
    asked for one that normalises."""
    kinds = {}
    if features.weight is not None:
        dense = directory / f"{number}_Dense"
        kinds[dense.name] = "Dense"
        outputs, inputs = features.weight.shape
        dense.mkdir()
        write_json(dense / CONFIG, DENSE.write(Dense(inputs, outputs, features.bias is not None)))
        write_map(dense / WEIGHTS, features.weight, features.bias, LINEAR)
    if normalized:
        kinds[f"{number + len(kinds)}_{NORMALIZE}"] = NORMALIZE
    return kinds


def _write_steps(directory: Path, kinds: dict[str, str], features: Features) -> None:
    steps = [
        {"idx": number, "name": str(number), "path": path, "type": TYPE + kind}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    write_json(directory / MODULES, steps)
    _write_settings(directory, features)


def _write_settings(directory: Path, features: Features) -> None:
    """How two vectors are compared, and of a definition its prompts and what it keeps; what else is said there stays.

    `encode_query` and `encode_document` take no default prompt, and know documents by one name only: what selfsup puts
    before these is named so.
    """
    path = directory / SETTINGS
    said = read_json(path) if path.exists() else {"similarity_fn_name": "cosine"}
    named = {name: text for name in NAMES if (text := features.prompt(name))}
    wanted = replace(features, prompts={**features.prompts, **named}, dimensions=())
    if path.exists() and _with_settings(directory, features.bare) == wanted:
        return
    kept = {} if wanted.kept is None else {"truncate_dim": wanted.kept}
    said.pop("truncate_dim", None)
    prompts = {"prompts": dict(wanted.prompts), "default_prompt_name": wanted.default_prompt}
    write_json(path, said | prompts | kept)


def write_text_input(directory: Path, window: int) -> None:
    """Say of a text encoder how many tokens of a text it reads, and whether in lower case, as is said of it there.

    Other arguments of its class are left out.
    """
    said = read_json(directory / LENGTH) if (directory / LENGTH).exists() else {}
    lowered = said.get("do_lower_case") is True
    write_json(directory / LENGTH, {"max_seq_length": window, "do_lower_case": lowered})


def write_image_input(directory: Path, config: VisionConfig, pooling: Pooling) -> None:
    """Say of a vision transformer what is pooled of an image: all its last hidden states, or those of the patches.

    The latter are what transformers' backbone of the same weights gives. To name that class, and to have it opened,
    takes the one task of sentence-transformers that goes by the name of the class. Raises UserError where its class
    gives no states to make the vectors of.
    """
    task: str = "feature-extraction"
    taken: list[str | int] = ["last_hidden_state"]
    patches = pooling == "mean" and config.prefix > 0
    unfit = config.pooled_norm or pooling not in POOLINGS or config.layout in HIDING
    if unfit or (patches and config.layout not in BACKBONES):
        raise UserError(
            f"sentence-transformers pools hidden states, and those of {config.layout} do not give its vectors "
            f"({pooling}); export it --to transformers or --to onnx."
        )
    if patches:
        task, taken = "retrieval", ["feature_maps", 0]
        named = {"architectures": [BACKBONES[config.layout]]}
        write_json(directory / CONFIG, read_json(directory / CONFIG) | named)
    image = {"image": {"method": "forward", "method_output_name": taken}}
    content = {"transformer_task": task, "modality_config": image, "module_output_name": "token_embeddings"}
    write_json(directory / LENGTH, content)


def keep_modules(origin: Path, directory: Path, features: Features, width: int, window: int) -> None:
    """Make of the files of a model with hidden states of `width` numbers what its origin was, where that is a directory
    of this layout: the same steps with the same settings and prompts, or others where `features` are others now."""
    if not (origin / MODULES).exists():
        return
    if _holds(origin, features):
        paths = [str(module.get("path")) for module in read_json_list(origin / MODULES)]
        for name in (MODULES, *(f"{path}/{file}" for path in paths if path for file in (CONFIG, WEIGHTS))):
            _copy(origin, directory, name)
    else:
        write_modules(directory, features, width, normalizes(origin))
    for name in (SETTINGS, LENGTH):
        _copy(origin, directory, name)
    _write_settings(directory, features)
    if text_window(origin, window) < window:
        said = read_json(directory / LENGTH) if (directory / LENGTH).exists() else {}
        write_json(directory / LENGTH, said | {"max_seq_length": window})


def _holds(directory: Path, features: Features) -> bool:
    """Whether the steps of a directory of this layout are known, and give the vectors that a definition says."""
    with suppress(UserError):
        return features.bare == _read_modules(directory)
    return False


def normalizes(directory: Path) -> bool:
    """Whether the last step of a directory of this layout normalises the vectors."""
    steps = read_json_list(directory / MODULES) if (directory / MODULES).exists() else []
    return any(str(step.get("type")).rpartition(".")[2] == NORMALIZE for step in steps)


def _copy(origin: Path, directory: Path, name: str) -> None:
    """A file of an origin, where it is there."""
    if inside(origin, name).is_file():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin / name, directory / name)


def write_router(directory: Path, routes: Sequence[str]) -> None:
    """Beside directories of this layout, each named as what it takes (`image`, `text`), what sends it there.

    What none of them takes is refused.
    """
    types, structure = {}, {}
    for route in routes:
        steps = read_json_list(directory / route / MODULES)
        kinds = {Path(route, step["path"]).as_posix(): step["type"] for step in steps}
        types.update(kinds)
        structure[route] = list(kinds)
    parameters = {"default_route": None, "allow_empty_key": False}
    write_json(directory / ROUTER, {"types": types, "structure": structure, "parameters": parameters})
    _write_steps(directory, {"": "Router"}, Features())


def read_features(directory: Path, poolings: Sequence[Pooling] = POOLINGS) -> Features:
    """The feature definition of a directory, its own or that of sentence-transformers, which also says what the own
    one leaves open; where it has none, the mean, of a text tower of CLIP or SigLIP its last token. Raises UserError
    where it is damaged, or pools in none of the ways that its network knows."""
    steps = (directory / MODULES).exists()
    if (directory / FEATURES).exists():
        own = read_own(directory, poolings)
        return _with_settings(directory, own) if steps else own
    if steps:
        return _with_settings(directory, _read_modules(directory))
    return Features("last" if read_config(directory).get("model_type") in TEXT_TOWERS else "mean")


def _with_settings(directory: Path, features: Features) -> Features:
    """A definition with the prompts and the numbers to keep that a directory of this layout says, where it says none
    itself. Raises UserError where they are broken."""
    path = directory / SETTINGS
    said = read_json(path) if path.exists() else {}
    prompts, default = read_prompts(said, "default_prompt_name", path)
    if prompts and not features.prompts:
        features = replace(features, prompts=prompts, default_prompt=default)
    return features if features.kept else replace(features, kept=read_kept(said, "truncate_dim", path))


def _read_modules(directory: Path) -> Features:
    """Pooling, and a linear map behind it. A step that normalises is passed over: it changes lengths only."""
    pooling: Any = "mean"
    maps: list[Path] = []
    for module in read_json_list(directory / MODULES):
        library, _, kind = str(module.get("type")).rpartition(".")
        if library.partition(".")[0] != "sentence_transformers":
            raise UserError(
                f"{directory} has a step of a class of its own ({module.get('type')}), whose code is not run; give a "
                "model made of the steps of sentence-transformers"
            )
        place = inside(directory, str(module.get("path")))
        if kind == "Pooling":
            saved = read_json(place / CONFIG)
            if saved.get("include_prompt") is False and _with_settings(directory, Features()).prompts:
                raise UserError(
                    f"{directory} pools without the tokens of its prompts (include_prompt in {place / CONFIG}), which "
                    "is not done here; give a model that pools all tokens"
                )
            pooling = _mode(saved)
        elif kind == "Dense" and not maps:
            DENSE.require(read_json(place / CONFIG), place / CONFIG)
            maps = [place / WEIGHTS]
        elif kind not in ("Transformer", TABLE_STEP, NORMALIZE):
            raise UserError(
                f"{directory} has a step {kind!r} behind its encoder; only pooling and a linear map can be loaded"
            )
    if pooling not in POOLINGS:
        raise UserError(f"{directory} pools by {pooling!r}; only {', '.join(POOLINGS)} can be loaded")
    return Features(pooling, *read_map(maps[0], LINEAR)) if maps else Features(pooling)


def _mode(saved: dict[str, Any]) -> object:
    """The one mode of a pooling step, in the names of before version 6 or of since."""
    flags = [key for key, on in saved.items() if key.startswith("pooling_mode_") and on]
    modes = saved.get("pooling_mode", [POOLING_KEYS.get(key, key) for key in flags])
    return modes[0] if isinstance(modes, list) and len(modes) == 1 else modes


def text_window(directory: Path, window: int) -> int:
    """The tokens that an encoder with a window reads of a text: of sentence-transformers, as few as its files say."""
    said = ((LENGTH, "max_seq_length"), ("tokenizer_config.json", "model_max_length"))
    for name, key in said if (directory / MODULES).exists() else ():
        found = read_json(directory / name).get(key) if (directory / name).is_file() else None
        if found is None:
            continue
        if not number(found, SHORTEST):  # where there is no bound, transformers writes 10³⁰
            raise broken(directory / name, key, found)
        return min(window, int(found))
    return window
