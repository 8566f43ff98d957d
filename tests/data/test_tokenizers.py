"""Tokenizers: round trips, parity with transformers, special tokens, foreign files, incremental decoding."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from selfsup.data import tokenizer_training as training
from selfsup.data import tokenizers as module
from selfsup.data.tokenizer_loading import load_tokenizer, open_tokenizer
from selfsup.data.tokenizer_training import train_tokenizer, vocabulary_size
from selfsup.data.tokenizers import END, KINDS, UNKNOWN, Marks, TextStream, TextTokenizer, cut
from selfsup.errors import UserError

CORPUS = [
    "It was the best of times, it was the worst of times.\nIt's all we've got: 1859!\n\n",
    "Größe, naïve café — ελληνικά, русский, 日本語, עברית, 👩‍👩‍👧 and e\u0301.\r\n\tIndented   text.",
    "def f(x):\n    return x ** 2  # code\n\n\n",
] * 3

UNICODE = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
KEEPS = ("bpe", "characters")  # every text it knows the characters of
SEEN = st.text(st.sampled_from(sorted(set("".join(CORPUS)))), max_size=60)


@pytest.fixture(scope="module")
def trained():
    return {kind: train_tokenizer(kind, CORPUS, 400 if kind == "bpe" else None) for kind in KINDS}


# -- our three --


@given(text=UNICODE)
@settings(deadline=None)
def test_bpe_keeps_every_text(trained, text):
    tokenizer = trained["bpe"]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert tokenizer.end not in ids


@given(text=SEEN)
@settings(deadline=None)
def test_characters_keep_every_text_of_known_characters(trained, text):
    tokenizer = trained["characters"]
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


def test_characters(trained):
    tokenizer = trained["characters"]
    assert tokenizer.vocabulary == 2 + len(set("".join(CORPUS)))
    assert tokenizer.tokens([0, 1]) == [END, UNKNOWN]
    assert tokenizer.tokens(tokenizer.encode("a\n 日")) == ["a", "\\n", " ", "日"]
    unseen = tokenizer.encode("a\u2603\u2603b")
    assert unseen[1] == unseen[2] == tokenizer.unknown == 1
    capped = train_tokenizer("characters", ["aaabbc"], 4)
    assert [capped.encode(symbol)[0] for symbol in "abc"] == [2, 3, 1]


def test_how_many_texts_are_encoded_at_once_changes_nothing(trained, monkeypatch):
    tokenizer = trained["bpe"]
    whole = tokenizer.encode_batch(CORPUS)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    parts = tokenizer.encode_batch(CORPUS)
    assert len(CORPUS) > 2
    assert [ids.tolist() for ids in parts] == [ids.tolist() for ids in whole]
    assert tokenizer.encode_batch([]) == []


def test_words():
    tokenizer = train_tokenizer("words", ["Il gatto dorme sul divano. Il gatto mangia."])
    ids = tokenizer.encode("Il gatto dorme sul divano")
    assert tokenizer.tokens(ids) == ["Il", "gatto", "dorme", "sul", "divano"]
    assert tokenizer.decode(ids) == "Il gatto dorme sul divano"
    assert tokenizer.token_bytes() is None
    assert tokenizer.encode("Il cane.").tolist() == [ids[0], 1, tokenizer.encode(".")[0]]
    capped = train_tokenizer("words", ["a a a b b c"], 4)
    assert capped.vocabulary == 4
    assert capped.encode("a b c").tolist() == [2, 3, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_special_ids_and_types(trained, kind):
    tokenizer = trained[kind]
    assert tokenizer.end == 0
    assert tokenizer.unknown == (None if kind == "bpe" else 1)
    assert tokenizer.special == ({0} if kind == "bpe" else {0, 1})
    assert tokenizer.encode("It").dtype == tokenizer.dtype == np.uint16
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([0, *tokenizer.encode("It"), 0]) == ("it" if kind == "wordpiece" else "It")
    with pytest.raises(UserError):
        tokenizer.tokens([tokenizer.vocabulary])


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_written_out_are_plain_text(kind):
    text = f"before {END} after {UNKNOWN} end"
    tokenizer = train_tokenizer(kind, [*CORPUS, text])
    ids = tokenizer.encode(text)
    assert not tokenizer.special & set(ids.tolist())
    if kind in KEEPS:
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_a_pure_function(kind):
    once, twice = (train_tokenizer(kind, iter(CORPUS), 300, total=1000) for _ in range(2))
    assert once.fingerprint == twice.fingerprint
    assert once.fingerprint != train_tokenizer(kind, CORPUS[:1], 300).fingerprint


def test_ids_of_large_vocabularies_take_32_bits():
    tokenizer = train_tokenizer("characters", ["".join(map(chr, range(0x20000, 0x20000 + 65_535)))])
    assert tokenizer.vocabulary == 65_537
    assert tokenizer.encode("a").dtype == np.uint32


def test_vocabulary_size():
    assert vocabulary_size(0) == vocabulary_size(1000) == 384
    assert vocabulary_size(1_000_000) == 1024
    assert vocabulary_size(120_000_000) == 8192
    assert vocabulary_size(10**12) == 65_536
    sizes = [vocabulary_size(10**power) for power in range(12)]
    assert all(small <= large for small, large in pairwise(sizes))
    assert not any(size % 128 for size in sizes)
    assert train_tokenizer("bpe", CORPUS * 20).vocabulary <= 384


@pytest.mark.parametrize(("kind", "size"), [("bpe", 256), ("characters", 2), ("words", 0), ("wordpiece", 3)])
def test_too_small_a_vocabulary_is_refused(kind, size):
    with pytest.raises(UserError, match="too small"):
        train_tokenizer(kind, CORPUS, size)


def test_bpe_sample_is_spread_evenly():
    pieces = [f"{number:04d}" for number in range(1000)]
    taken = list(training._evenly(pieces, 4000, 400))
    assert len(taken) in (100, 101)
    assert np.ptp(np.diff([int(piece) for piece in taken])) <= 1
    assert list(training._evenly(pieces, 4000, 5000)) == pieces


def test_word_pieces():
    """In lower case without accents; a word that is not in the vocabulary goes in pieces."""
    tokenizer = train_tokenizer("wordpiece", ["The naïve cat sat, the cats sat."] * 5, family="encoder")
    shown = tokenizer.tokens(tokenizer.encode("the NAIVE cats: tats"))
    assert shown[:3] == ["the", "naive", "cats"]
    assert shown[3] == "[UNK]"  # a colon was never seen
    assert "".join(shown[4:]).replace("##", "") == "tats"
    assert tokenizer.decode(tokenizer.encode("The cats sat, naïve.")) == "the cats sat, naive."
    assert tokenizer.token_bytes() is None


@given(texts=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), max_size=5))
@settings(deadline=None, max_examples=30)
def test_word_pieces_are_a_pure_function_and_as_many_as_asked_for(texts):
    for size in (4, 10, 40):
        once, twice = (train_tokenizer("wordpiece", texts, size) for _ in range(2))
        assert once.fingerprint == twice.fingerprint
        assert once.vocabulary <= size


# -- pieces of long documents --

SEAMS = st.lists(
    st.sampled_from([*"aZ ß1'.,\n\r\t", " a", "a b", "\n ", "'s", "'S ", "\u3000", "\x1c", "\x85", "日", "\u0301"])
).map("".join)


@given(text=SEAMS)
@example(text="\n  1 aa")
@settings(deadline=None, max_examples=300)
def test_pieces_encode_as_the_whole(trained, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", 3)
        for tokenizer in trained.values():
            pieces = tokenizer.pieces(text)
            assert "".join(pieces) == text
            whole = tokenizer.encode(text)
            assert np.array_equal(np.concatenate(tokenizer.encode_batch(pieces)), whole)


def test_pieces_are_of_bounded_length(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 100)
    lines = "A line of some words\n" * 100
    spaces = "one long line of words " * 100
    for text in (lines, spaces):
        assert {len(piece) < 130 for piece in cut(text, lambda _: None)} == {True}
    run = "x" * 1000
    assert cut(run, lambda _: None) == [run]
    assert [len(piece) for piece in cut(run, lambda _: 150)] == [150] * 6 + [100]


# -- runs without white space --

RUNS = {
    "letters": "x",
    "marks": "=",
    "spaces": " ",
    "lines": "\n",
    "spaced lines": " \n",
    "base64": "9aB+/",
    "accents": "\u0301",
    "ideographs": "日本",
    "emoji": "👩\u200d",
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_long_runs_are_cut_and_their_tokens_stay_the_same(tmp_path, trained, kind, run, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 3000)
    text = f"It was the {(run * 20_000)[:20_000]} times 'll"
    tokenizer = trained[kind]
    pieces = tokenizer.pieces(text)
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 2 * module.PIECE
    ids = np.concatenate(tokenizer.encode_batch(pieces))
    assert np.array_equal(ids, tokenizer.encode(text))
    tokenizer.save(tmp_path)
    stock = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert np.array_equal(ids, stock.encode(text, add_special_tokens=False).ids)


def longest(tokenizer, text):
    """Characters of the longest piece that the tokenizer treats as one word."""
    found = tokenizer._tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return max(end - start for _, (start, end) in found)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_no_word_is_longer_than_its_bound(trained, run):
    """What a BPE or WordPiece does with a word grows faster than the word."""
    text = run * 5000
    assert longest(trained["bpe"], text) <= 2 * module.RUN + 1
    if not text.isspace():
        assert longest(trained["wordpiece"], text) <= training.WORD


@given(text=SEAMS)
@settings(deadline=None)
def test_ordinary_text_is_cut_as_qwen2_cuts_it(trained, text):
    theirs = module.qwen2_splitting(module.QWEN2_PATTERN).pre_tokenize_str(text)
    assert trained["bpe"]._tokenizer.pre_tokenizer.pre_tokenize_str(text) == theirs


def test_a_long_word_goes_in_word_pieces():
    tokenizer = train_tokenizer("wordpiece", ["ACGT" * 500] * 3)
    ids = tokenizer.encode("ACGT" * 400)
    assert tokenizer.unknown not in ids
    assert tokenizer.decode(ids).replace(" ", "") == "acgt" * 400


@pytest.mark.skipif(os.name == "nt", reason="a process of its own is interrupted in another way there")
def test_an_interrupt_ends_a_long_encoding(tmp_path):
    """Of a tokenizer from elsewhere, whose words have no bound; by itself this one would take minutes."""
    theirs = train_tokenizer("bpe", ["ACGT" * 100])._tokenizer
    theirs.pre_tokenizer = module.qwen2_splitting(module.QWEN2_PATTERN)
    theirs.save(str(tmp_path / "tokenizer.json"))
    program = (
        "import signal, sys; from pathlib import Path; from selfsup.data.tokenizer_loading import load_tokenizer\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it\n"
        "tokenizer = load_tokenizer(Path(sys.argv[1])); print('begun', flush=True)\n"
        "tokenizer.encode('ACGT' * 500_000)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=240)
    assert "KeyboardInterrupt" in error


# -- other people's programs --


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", [None, "qwen3"])
def test_stock_transformers_opens_it(tmp_path, trained, kind, model_type):
    tokenizer = trained[kind]
    tokenizer.save(tmp_path, max_length=64)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (*CORPUS, "never seen: \u2603 \ue000", ""):
        ids = tokenizer.encode(text).tolist()
        assert theirs(text)["input_ids"] == [tokenizer.end, *ids]
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode([0, *ids], skip_special_tokens=True) == tokenizer.decode(ids)
    assert theirs.bos_token == theirs.eos_token == END
    assert theirs.bos_token_id == theirs.eos_token_id == 0
    assert theirs.model_max_length == 64
    assert len(theirs) == tokenizer.vocabulary
    assert theirs.unk_token == (None if kind == "bpe" else UNKNOWN)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_opened_again(tmp_path, trained, kind):
    tokenizer = trained[kind]
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = load_tokenizer(path)
        assert again.fingerprint == tokenizer.fingerprint
        assert (again.end, again.unknown) == (tokenizer.end, tokenizer.unknown)
        assert again._may_cut == (kind != "wordpiece")
        assert again.encode(CORPUS[1]).tolist() == tokenizer.encode(CORPUS[1]).tolist()


def metaspace_unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS[:1] * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=20)
    return tokenizer


def test_foreign_tokenizer(tmp_path):
    theirs = metaspace_unigram()
    theirs.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}, "bos_token": "<s>"}')
    tokenizer = load_tokenizer(tmp_path)
    theirs.no_truncation()
    theirs.no_padding()
    text = "It was the ﬁrst of times, \ue000"
    ids = tokenizer.encode(text)
    assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == "It was the first of times, "
    assert (tokenizer.start, tokenizer.end, tokenizer.unknown) == (1, 2, 0)
    assert tokenizer.token_bytes() is None
    long = "It was the best\nof times " * 5000
    assert tokenizer.pieces(long) == [long]
    assert 2 not in tokenizer.encode("plain </s> text")
    tokenizer.save(tmp_path / "saved")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")(text)["input_ids"] == [1, *ids]
    assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint


def test_foreign_byte_level_tokenizer(tmp_path):
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(CORPUS, trainer)
    theirs.add_tokens(["<tool>"])
    theirs.save(str(tmp_path / "t.json"))
    tokenizer = load_tokenizer(tmp_path / "t.json")
    text = "naïve 日本 <tool> <pad>"
    ids = tokenizer.encode(text)
    assert tokenizer.vocabulary - 1 in ids
    assert tokenizer.end == 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert not tokenizer._may_cut


def test_end_token_that_is_also_text_is_refused_without_an_unknown_token():
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(UserError, match="plain text"):
        TextTokenizer(tokenizer, Marks("</s>", "</s>")).encode("a </s> a")


# -- opening --


def test_open_tokenizer(tmp_path, trained):
    assert all(open_tokenizer(kind) is None for kind in KINDS)
    assert open_tokenizer(trained["bpe"]) is trained["bpe"]
    trained["bpe"].save(tmp_path)
    assert open_tokenizer(str(tmp_path)).fingerprint == trained["bpe"].fingerprint
    with pytest.raises(UserError, match="did you mean characters"):
        open_tokenizer("charcters")
    with pytest.raises(UserError, match="bpe, characters, words"):
        open_tokenizer("sentencepiece")


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match=r"There is no .*tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer that"):
        load_tokenizer(tmp_path)
    Tokenizer(models.WordLevel({"a": 0})).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="no end-of-text token"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": null, "bos_token": "a"}')
    assert load_tokenizer(tmp_path).end == 0


# -- incremental decoding --


@given(data=st.data())
@settings(deadline=None)
def test_stream_prints_what_decoding_gives(trained, data):
    for tokenizer in trained.values():
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary - 1), max_size=20))
        stream = TextStream(tokenizer)
        printed = [stream.push([id_]) for id_ in ids]
        assert "".join(printed) + stream.flush() == tokenizer.decode(ids)
        assert stream.flush() == ""


@given(text=UNICODE)
@settings(deadline=None)
def test_stream_never_prints_half_a_character(trained, text):
    text = text.replace("\ufffd", "")
    tokenizer = trained["bpe"]
    stream = TextStream(tokenizer)
    printed = [stream.push([id_]) for id_ in tokenizer.encode(text)]
    assert not any("\ufffd" in piece for piece in printed)
    assert "".join(printed) == text


def test_stream_goes_on_behind_a_prompt():
    tokenizer = train_tokenizer("words", ["it was the best"])
    prompt = [tokenizer.end, *tokenizer.encode("it was")]
    stream = TextStream(tokenizer, prompt)
    assert stream.push(tokenizer.encode("the")) == " the"
    assert stream.push([tokenizer.end]) == ""
    assert stream.push(tokenizer.encode("best")) == " best"


def test_tokens_shows_half_characters(trained):
    tokenizer = trained["bpe"]
    shown = tokenizer.tokens([0, *tokenizer.encode("it \u2603\n")])
    assert shown[0] == END
    assert shown[1:] == ["it", " ", "\\xe2", "\\x98", "\\x83", "\\n"]


# -- the encoder's family --

HIDING = "The old man sat by the [MASK] and smoked."


@pytest.fixture(scope="module")
def encoders():
    return {kind: train_tokenizer(kind, CORPUS, 400 if kind == "bpe" else None, family="encoder") for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_has_its_own_special_tokens(encoders, kind):
    tokenizer = encoders[kind]
    unknown = [] if kind == "bpe" else ["[UNK]"]
    names = ["[PAD]", "[CLS]", "[SEP]", *unknown, "[MASK]"]
    assert tokenizer.tokens(range(len(names))) == names
    assert (tokenizer.pad, tokenizer.start, tokenizer.end) == (0, 1, 2)
    assert tokenizer.unknown == (None if kind == "bpe" else 3)
    assert tokenizer.mask == len(names) - 1
    assert tokenizer.special == set(range(len(names)))
    assert tokenizer.between == [2, 1]
    ids = tokenizer.encode("It was the best")
    assert not tokenizer.special & set(ids.tolist())
    assert tokenizer.frame(ids).tolist() == [1, *ids, 2]
    assert tokenizer.frame([]).tolist() == [1, 2]
    assert tokenizer.frame(ids).dtype == tokenizer.dtype
    assert tokenizer.decode(tokenizer.frame(ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_the_family_changes_nothing_but_special_tokens(trained, encoders, kind):
    """A decoder's ids are what they always were: its special tokens first, then the same vocabulary."""
    decoder, encoder = trained[kind], encoders[kind]
    assert decoder.between == [0]
    assert (decoder.start, decoder.mask, decoder.pad) == (0, None, 0)
    assert decoder.marks.listed() == ([END] if kind == "bpe" else [END, UNKNOWN])
    assert decoder.tokens([0]) == [END]
    if kind not in ("bpe", "wordpiece"):  # whose merges stop where the vocabulary is full
        shift = len(encoder.special) - len(decoder.special)
        assert encoder.vocabulary == decoder.vocabulary + shift
        for text in CORPUS:
            assert (decoder.encode(text) + shift).tolist() == encoder.encode(text).tolist()
        for id_ in range(2, decoder.vocabulary):
            assert decoder.tokens([id_]) == encoder.tokens([id_ + shift])


def test_ids_of_a_decoders_bpe_are_those_of_the_library_alone():
    """Held against the tokenizers library without any of our code around it."""
    for family, special in (("decoder", [END]), ("encoder", ["[PAD]", "[CLS]", "[SEP]", "[MASK]"])):
        plain = Tokenizer(models.BPE())
        plain.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(module.QWEN2_PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        plain.train_from_iterator(CORPUS, trainer)
        ours = train_tokenizer("bpe", CORPUS, 400, family=family)
        for text in CORPUS:
            assert ours.encode(text).tolist() == plain.encode(text).ids


@pytest.mark.parametrize("kind", KINDS)
def test_marked_text(encoders, kind):
    """[MASK] is the mask and takes the space before it; everything else is encoded as ever, and none is added."""
    tokenizer = encoders[kind]
    ids = tokenizer.encode_marked("It was [MASK] best [SEP]")
    pieces = {
        "bpe": ["It was", tokenizer.mask, " best", tokenizer.end],
        "characters": ["It was", tokenizer.mask, " best ", tokenizer.end],
        "words": ["It was", tokenizer.mask, "best", tokenizer.end],
        "wordpiece": ["It was", tokenizer.mask, "best", tokenizer.end],
    }[kind]
    expected = []
    for piece in pieces:
        expected += tokenizer.encode(piece).tolist() if isinstance(piece, str) else [piece]
    if kind == "bpe":  # whose [SEP] leaves its space to the text before it
        expected = [*expected[:-1], *tokenizer.encode(" "), tokenizer.end]
    assert ids.tolist() == expected
    assert ids.dtype == tokenizer.dtype
    assert tokenizer.mask not in tokenizer.encode("It was [MASK] best [SEP]")  # where nobody means it


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_of_an_encoder_written_out_are_plain_text(kind):
    text = "before [MASK] and [CLS] after [SEP] then [PAD] end [UNK]"
    tokenizer = train_tokenizer(kind, [*CORPUS, text], family="encoder")
    ids = tokenizer.encode(text)
    assert not tokenizer.special & set(ids.tolist())
    if kind in KEEPS:
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_stock_transformers_opens_an_encoders(tmp_path, encoders, kind):
    tokenizer = encoders[kind]
    tokenizer.save(tmp_path, max_length=64)
    (tmp_path / "config.json").write_text('{"model_type": "modernbert"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    written = (HIDING, "[MASK]", "a  [MASK][MASK] b", "[CLS] a [SEP][PAD]")
    for text in (*CORPUS, "", *written):
        assert theirs(text)["input_ids"] == tokenizer.frame(tokenizer.encode(text)).tolist()
    tokenizer.save(tmp_path, max_length=64, fills=True)
    asking = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in written:
        assert asking(text)["input_ids"] == tokenizer.frame(tokenizer.encode_marked(text)).tolist()
    assert theirs("a", "b")["input_ids"] == [1, *tokenizer.encode("a"), 2, *tokenizer.encode("b"), 2]
    assert (theirs.cls_token, theirs.sep_token, theirs.mask_token) == ("[CLS]", "[SEP]", "[MASK]")
    assert (theirs.pad_token, theirs.pad_token_id) == ("[PAD]", 0)
    assert theirs.unk_token == (None if kind == "bpe" else "[UNK]")
    assert len(theirs) == tokenizer.vocabulary


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoders_is_saved_and_opened_again(tmp_path, encoders, kind):
    tokenizer = encoders[kind]
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path, "encoder")
    assert again.marks == tokenizer.marks
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.start, again.end, again.unknown) == (tokenizer.start, tokenizer.end, tokenizer.unknown)
    assert (again.mask, again.pad) == (tokenizer.mask, tokenizer.pad)
    assert again._may_cut == (kind != "wordpiece")
    assert again.encode_marked(HIDING).tolist() == tokenizer.encode_marked(HIDING).tolist()


def test_an_encoder_takes_over_a_decoders_tokenizer(tmp_path, trained):
    """What it lacks is added behind its vocabulary; the ids of texts stay."""
    trained["bpe"].save(tmp_path)
    tokenizer = load_tokenizer(tmp_path, "encoder")
    size = trained["bpe"].vocabulary
    assert tokenizer.tokens(range(size, size + 4)) == ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.vocabulary == size + 4
    for text in CORPUS:
        assert tokenizer.encode(text).tolist() == trained["bpe"].encode(text).tolist()
    assert tokenizer.encode_marked("best of [MASK]")[-1] == tokenizer.mask
    assert load_tokenizer(tmp_path).vocabulary == size
    tokenizer.save(tmp_path / "encoder", fills=True)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "encoder")
    assert theirs(HIDING)["input_ids"] == tokenizer.frame(tokenizer.encode_marked(HIDING)).tolist()


def word_piece(tokens=()):
    """As BERT's, in lower case."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "old", "man", "smok", "##ed", "##es", "2019"]
    vocabulary += ["##s", "s", ".", "-", "it", "'", *tokens]
    tokenizer = Tokenizer(models.WordPiece({t: n for n, t in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


@pytest.mark.parametrize("named", [False, True])
def test_bert_brings_its_special_tokens(tmp_path, named):
    word_piece().save(str(tmp_path / "tokenizer.json"))
    if named:
        names = {"cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}, "mask_token": "[MASK]"}
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    tokenizer = load_tokenizer(tmp_path, "encoder")
    assert tokenizer.vocabulary == 18
    assert (tokenizer.start, tokenizer.end, tokenizer.mask, tokenizer.pad, tokenizer.unknown) == (2, 3, 4, 0, 1)
    assert tokenizer.special == {0, 1, 2, 3, 4}
    text = "The old [MASK] smokes."
    assert tokenizer.frame(tokenizer.encode_marked(text)).tolist() == [2, 5, 6, 4, 8, 10, 14, 3]
    assert tokenizer.decode(tokenizer.encode_marked(text)) == "the old smokes."


def test_roberta_brings_its_special_tokens(tmp_path):
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(CORPUS, trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path, "encoder")
    assert tokenizer.vocabulary == 300
    assert (tokenizer.start, tokenizer.end, tokenizer.mask, tokenizer.pad) == (0, 2, 4, 1)
    named = {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>", "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    assert load_tokenizer(tmp_path, "encoder").marks == tokenizer.marks
    assert tokenizer.encode_marked("the <mask>").tolist() == [*tokenizer.encode("the "), 4]  # as its file has it


def test_one_token_cannot_open_and_close(tmp_path):
    """A decoder's tokenizer names one token for both; an encoder then gets its own two."""
    Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "<unk>": 2}, unk_token="<unk>")).save(
        str(tmp_path / "tokenizer.json")
    )
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<eos>", "bos_token": "<eos>"}')
    tokenizer = load_tokenizer(tmp_path, "encoder")
    assert tokenizer.start != tokenizer.end
    assert tokenizer.tokens([tokenizer.start, tokenizer.end]) == ["[CLS]", "[SEP]"]
    assert tokenizer.marks.unknown == "<unk>"


# -- words of several tokens --


def words_of(tokenizer, text):
    """The text's tokens, those of one word together."""
    ids = tokenizer.encode(text)
    goes_on, open_ended = tokenizer.word_parts()
    words = []
    for number, (id_, token) in enumerate(zip(ids, tokenizer.tokens(ids), strict=True)):
        if number and goes_on[id_] and open_ended[ids[number - 1]]:
            words[-1] += token
        else:
            words.append(token)
    return words


def test_words_of_byte_level_bpe(encoders):
    words = words_of(encoders["bpe"], "Größe, naïvely 12 o'clock")
    shown = ["Gr\\xc3\\xb6\\xc3\\x9fe", ",", " na\\xc3\\xafvely", " ", "1", "2", " o", "'", "clock"]
    joined = [word.encode().decode("unicode_escape").encode("latin1").decode() for word in words if word]
    wanted = [word.encode().decode("unicode_escape").encode("latin1").decode() for word in shown]
    assert "".join(joined) == "".join(wanted)
    assert joined[0] == "Größe"
    assert joined[2] == " naïvely"
    assert {"1", "2", "'"} <= {*joined, *(word.strip() for word in joined)}


@given(text=st.text(st.sampled_from(sorted({*"".join(CORPUS), *"\x80ÿ№½ª😀"})), max_size=60) | UNICODE)
@settings(deadline=None)
def test_words_of_characters_and_bytes_are_runs_of_letters(encoders, text):
    """Of the decoded text; a character of several tokens counts as a letter, for no token says what it is."""
    for kind in ("bpe", "characters"):
        tokenizer = encoders[kind]
        goes_on, open_ended = tokenizer.word_parts()
        ids = tokenizer.encode(text)
        if tokenizer.unknown is not None:
            ids = ids[ids != tokenizer.unknown]
        written = tokenizer.decode(ids)
        seams = tokenizer.token_bytes()[ids].cumsum()
        sizes = np.array([len(character.encode()) for character in written], np.int64)
        begins, ends = sizes.cumsum() - sizes, sizes.cumsum()
        letter = [
            character.isalpha() or bool(((seams > begin) & (seams < end)).any())
            for character, begin, end in zip(written, begins, ends, strict=True)
        ]
        for seam, (left, right) in zip(seams.tolist(), pairwise(ids), strict=False):
            after = int(np.searchsorted(ends, seam, "right"))  # the character that goes on or begins here
            together = letter[after] and letter[after - (begins[after] == seam)]
            assert bool(goes_on[right] and open_ended[left]) == together


def test_every_word_is_one_token(encoders):
    tokenizer = encoders["words"]
    goes_on, _ = tokenizer.word_parts()
    assert not goes_on.any()
    assert words_of(tokenizer, "it was worst") == ["it", "was", "worst"]


def test_words_of_word_pieces(tmp_path):
    word_piece(tokens=["##"]).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path, "encoder")
    assert words_of(tokenizer, "The old man smoked - it smokes. 2019s it's") == [
        "the",
        "old",
        "man",
        "smok##ed",
        "-",
        "it",
        "smok##es",
        ".",
        "2019##s",
        "it",
        "'",
        "s",
    ]


def test_words_of_sentencepiece(tmp_path):
    metaspace_unigram().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path, "encoder")
    words = words_of(tokenizer, "It was the worst, best times")
    assert "".join(words) == "▁It▁was▁the▁worst,▁best▁times"
    assert [word for word in words if word != "▁"] == ["It", "▁was", "▁the", "▁worst", ",", "best", "▁times"]
    assert len(words) < len(tokenizer.encode("It was the worst, best times"))  # some words are of several


def test_special_tokens_belong_to_no_word(encoders):
    for tokenizer in encoders.values():
        goes_on, open_ended = tokenizer.word_parts()
        special = sorted(tokenizer.special)
        assert not goes_on[special].any()
        assert not open_ended[special].any()
        assert len(goes_on) == len(open_ended) == tokenizer.vocabulary
