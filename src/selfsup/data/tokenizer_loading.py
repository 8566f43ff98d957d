"""Tokenizers that are opened: a tokenizer.json, or a directory that holds one, with the special tokens it names."""

from __future__ import annotations

import difflib
import json
from collections.abc import Container
from pathlib import Path

from tokenizers import Tokenizer, normalizers

from selfsup.data import tokenizers
from selfsup.data.tokenizers import END, KINDS, MARKS, Family, Marks, TextTokenizer, library_at_work
from selfsup.errors import UserError
from selfsup.files import expanded, read_bytes

# Names that special tokens go by, for tokenizers whose files do not say.
KNOWN = {
    "eos_token": (END, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]"),
    "cls_token": ("[CLS]", "<s>", "<cls>"),
    "sep_token": ("[SEP]", "</s>", "<sep>"),
    "mask_token": ("[MASK]", "<mask>"),
    "pad_token": ("[PAD]", "<pad>"),
}
LOWERING = ("Siglip2Tokenizer",)  # classes of transformers that read texts in lower case, whatever tokenizer.json says
MOST_IDS = 1 << 22
# What a directory may hold of its tokenizer.
BESIDE = (
    *(*tokenizers.NAMING, "added_tokens.json", "chat_template.jinja", "additional_chat_templates/*.jinja"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
MOST = 1 << 27  # bytes of one of them


def open_tokenizer(spec: str | Path | TextTokenizer, family: Family = "decoder") -> TextTokenizer | None:
    """The tokenizer at a path, or None for one of `KINDS`, trained on the corpus; raises UserError for neither."""
    if isinstance(spec, TextTokenizer):
        return spec
    if spec in KINDS:
        return None
    if expanded(spec).exists():
        return load_tokenizer(expanded(spec), family)
    near = difflib.get_close_matches(str(spec), KINDS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"There is no tokenizer {str(spec)!r}: {hint}choose {', '.join(KINDS)}, or the path of a "
        "tokenizer.json, of a Hugging Face directory or of a run."
    )


def load_tokenizer(path: Path, family: Family = "decoder") -> TextTokenizer:
    """Open a tokenizer.json, or a directory that holds one (itself, or in model/, as a run does).

    Its special tokens are those that the files beside it name, else tokens of its vocabulary with a usual name
    (`KNOWN`). A decoder's end is the eos_token, else the bos_token. Its start is what the tokenizer itself puts
    before a text, else the bos_token, else the end. What an encoder lacks of its special tokens is added to the
    vocabulary; that of a tower is as a decoder's, and texts stand in what it puts around them. Raises UserError: no
    such file, not readable, no end-of-text token for a decoder.
    """
    if (path / "model" / "tokenizer.json").is_file():
        path = path / "model"
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.exists():
        raise UserError(f"There is no {file}: give a tokenizer.json or a directory that holds one.")
    files = _read_files(file)
    with library_at_work(f"{file} is no tokenizer that the tokenizers library opens"):
        tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    cut = tokenizer.truncation or {}
    tokenizer.no_truncation()
    tokenizer.no_padding()  # which may be to any length
    vocabulary = tokenizer.get_vocab()
    if (highest := max(vocabulary.values(), default=-1)) >= MOST_IDS:  # before tables by number are made
        raise UserError(f"{file} has a token of number {highest:,}; numbers below {MOST_IDS:,} can be read.")
    named = _numbered_tokens(file.parent, tokenizer) | tokenizers.named_tokens(files)
    with library_at_work(f"{file} is no tokenizer that the tokenizers library can use"):
        if family == "tower" and tokenizers.json_object(files, tokenizers.CONFIG).get("tokenizer_class") in LOWERING:
            _lower(tokenizer)
        marks = _find_marks(tokenizer, vocabulary, named, family)
        if marks is None:
            config = "name it as eos_token in a tokenizer_config.json beside it"
            raise UserError(f"{file} has no end-of-text token: {config}.")
        opened = TextTokenizer(tokenizer, marks, files, framed=family in ("tower", "table"))
    opened.longest = cut.get("max_length")
    return opened


def _lower(tokenizer: Tokenizer) -> None:
    """Have texts read in lower case."""
    others = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *others])


def _find_marks(
    tokenizer: Tokenizer, vocabulary: Container[str], named: dict[str, str], family: Family
) -> Marks | None:
    """The special tokens of a tokenizer: as they are named, else those with a usual name."""

    def find(*roles: str) -> str | None:
        candidates = [*(named[role] for role in roles if role in named), *KNOWN.get(roles[0], ())]
        return next((token for token in candidates if token in vocabulary), None)

    if family == "table":
        return MARKS["table"]
    unknown = _unknown_token(tokenizer)
    if family != "encoder":
        end = find("eos_token", "bos_token")
        put = [tokenizer.id_to_token(id_) for id_ in tokenizers.framing(tokenizer)[0][-1:]]
        start = put[0] if put else find("bos_token")
        return None if end is None else Marks(start or end, end, unknown, pad=find("pad_token") or end)
    usual = MARKS["encoder"]
    start, end = find("cls_token", "bos_token"), find("sep_token", "eos_token")
    mask, pad = find("mask_token") or usual.mask, find("pad_token") or usual.pad
    if pad in (start, end):  # a decoder's tokenizer, whose padding is told apart by its place
        pad = usual.pad
    if start == end:  # another one's, whose one token cannot play both parts
        start = end = None
    return Marks(start or usual.start, end or usual.end, unknown, mask, pad)


def _read_files(file: Path) -> dict[str, bytes]:
    """A tokenizer.json, and what lies beside it and belongs to a tokenizer, by name."""
    others = [path for name in BESIDE for path in sorted(file.parent.glob(name)) if path.is_file()]
    named = {path.relative_to(file.parent).as_posix(): path for path in others} | {"tokenizer.json": file}
    try:
        return {name: read_bytes(path, MOST) for name, path in named.items()}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); get a whole copy of it.") from error


def _numbered_tokens(directory: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """Special tokens by role as the files of a model name them, by their ids."""
    named: dict[str, str] = {}
    for file in ("generation_config.json", "config.json"):
        try:
            config = json.loads(read_bytes(directory / file, MOST))
        except (OSError, ValueError, RecursionError):
            continue  # whoever reads the model says so
        for role in ("bos_token", "eos_token", "pad_token"):
            id_ = config.get(f"{role}_id") if isinstance(config, dict) else None
            if type(id_) is int and 0 <= id_ < MOST_IDS and (token := tokenizer.id_to_token(id_)) is not None:
                named[role] = token
    return named


def _unknown_token(tokenizer: Tokenizer) -> str | None:
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_id") is not None:  # Unigram
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token") or None
