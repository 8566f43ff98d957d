"""Models as mteb and the lm-evaluation-harness take them: stand-ins of what these ask, and both where installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import foreign
import numpy as np
import pytest
import tiny_encoders
import torch

from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.errors import UserError
from selfsup.evaluation import for_lm_eval
from selfsup.evaluation.for_lm_eval import DecoderRequests, lm_eval_model
from selfsup.evaluation.for_mteb import MtebModel
from selfsup.inference.generate import LanguageModel
from selfsup.inference.opening import load
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.decoder_layouts import save_model

CONTINUED = [
    ("the cat", " sat by the sea"),
    ("the cat ", "ran ."),
    ("", "the dog slept"),
    ("the hen sang on the hill . " * 8, " the fox ran"),
    ("a", "b"),
]
TEXTS = ["the cat sat by the sea .", "", "the dog slept by the hill . " * 9]


def asked(*requests: Any) -> list[Any]:
    return [SimpleNamespace(args=args) for args in requests]


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of selfsup, whose texts begin behind a start token, one of transformers that stands here, and one that is
    opened by transformers."""
    place = tmp_path_factory.mktemp("decoders")
    tokenizer = train_tokenizer("bpe", [text for text in TEXTS if text] * 4, 300)
    config = DecoderConfig(tokenizer.vocabulary, 2, 32, 2, 1, 16, 64, window=24, tied=True)
    model = Decoder(config).initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    save_model(place / "own", model, tokenizer, "")
    return {"own": place / "own", "llama": foreign.llama(place / "llama"), "gpt2": foreign.gpt2(place / "gpt2")}


@pytest.fixture(scope="module", params=["own", "llama", "gpt2"])
def decoder(request: pytest.FixtureRequest, decoders: dict[str, Path]) -> Path:
    return decoders[request.param]


def opened(directory: Path) -> tuple[LanguageModel, DecoderRequests]:
    model = load(directory)
    assert isinstance(model, LanguageModel)
    return model, DecoderRequests(model, "fp32")


def plain(model: LanguageModel, tokens: Sequence[int], predicted: int) -> tuple[float, bool]:
    """One token after the other, each from all before it."""
    total, likeliest = 0.0, True
    for place in range(len(tokens) - predicted, len(tokens)):
        with torch.no_grad():
            hidden = model.decoder(torch.tensor([list(map(int, tokens[:place]))]))[0, -1]
            logits = hidden @ model.decoder.output_weight.T
        total += float(logits.log_softmax(-1)[tokens[place]])
        likeliest &= int(logits.argmax()) == tokens[place]
    return total, likeliest


# -- the lm-evaluation-harness -------------------------------------------------------------------------------


def test_probabilities_of_continuations(decoder: Path) -> None:
    model, requests = opened(decoder)
    found = requests.loglikelihood(asked(*CONTINUED))
    for (context, continuation), (total, likeliest) in zip(CONTINUED, found, strict=True):
        before = model.tokenizer.opened(model.tokenizer.encode(context.rstrip()))
        whole = [*before[:1], *model.tokenizer.encode(context + continuation)] if not context else None
        whole = whole or model.tokenizer.opened(model.tokenizer.encode(context + continuation))
        tokens = whole[-(requests.window + 1) :]
        expected = plain(model, tokens, len(whole) - len(before))
        assert total == pytest.approx(expected[0], abs=1e-3), context
        assert likeliest == expected[1]


def test_the_likeliest_continuation_is_known_as_such(decoder: Path) -> None:
    model, requests = opened(decoder)
    tokens = [*model.tokenizer.opened(model.tokenizer.encode("the cat"))]
    for _ in range(4):
        with torch.no_grad():
            hidden = model.decoder(torch.tensor([tokens]))[0, -1]
        tokens.append(int((hidden @ model.decoder.output_weight.T).argmax()))
    scored = for_lm_eval.Scored(tokens, 4)
    other = for_lm_eval.Scored([*tokens[:-1], (tokens[-1] + 1) % 200], 4)
    found = requests._answers([scored, other, for_lm_eval.Scored(tokens[:3], 0)])
    assert [likeliest for _, likeliest in found] == [True, False, True]
    assert found[2][0] == 0


def test_texts_are_cut_into_windows(decoder: Path) -> None:
    """Each token once, behind the start token, from the token before its window on; of the last window all of it."""
    model, requests = opened(decoder)
    found = requests.loglikelihood_rolling(asked(*[(text,) for text in TEXTS]))
    for text, total in zip(TEXTS, found, strict=True):
        tokens, size = [*model.tokenizer.opened([]), *model.tokenizer.encode(text)], requests.window
        expected, done = 0.0, 1
        while done < len(tokens):
            end = min(done + size, len(tokens))
            expected += plain(model, tokens[max(0, end - size - 1) : end], end - done)[0]
            done = end
        assert total == pytest.approx(expected, abs=2e-3)
    assert found[1] == 0


def test_company_changes_nothing(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, requests = opened(decoder)
    together = requests.loglikelihood(asked(*CONTINUED))
    monkeypatch.setattr(for_lm_eval, "TOKENS", 1)
    monkeypatch.setattr(for_lm_eval, "LOGITS", 1)
    alone = requests.loglikelihood(asked(*CONTINUED))
    assert [total for total, _ in alone] == pytest.approx([total for total, _ in together], abs=1e-4)


def test_writing(decoder: Path) -> None:
    model, requests = opened(decoder)
    whole = str(model.generate("the cat", 12, 0.0, precision="fp32"))
    assert requests.generate_until(asked(("the cat", {"max_gen_toks": 12, "do_sample": False}))) == [whole]
    stop = whole[3:5]
    written = requests.generate_until(asked(("the cat", {"max_gen_toks": 12, "until": [stop], "temperature": 0.0})))
    assert written == [whole[: whole.index(stop)]]
    how = {"max_gen_toks": 12, "do_sample": True, "temperature": 2.0, "top_k": 50}
    assert requests.generate_until(asked(("the cat", how))) != [whole]
    with pytest.raises(UserError, match="asks to write with beams"):
        requests.generate_until(asked(("the cat", {"beams": 3})))


def test_what_has_no_room_is_refused(decoders: dict[str, Path]) -> None:
    _, requests = opened(decoders["own"])
    with pytest.raises(UserError, match="tokens and the model a window of 24"):
        requests.loglikelihood(asked(("", TEXTS[2])))


def test_beside_the_harness(decoder: Path) -> None:
    """Its own class for models of transformers answers the same."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=str(decoder), device="cpu", dtype="float32", batch_size=1)
    ours = lm_eval_model(decoder, "cpu", "fp32")
    assert theirs.max_length == ours.window

    def given(kind: Any, *requests: tuple[Any, ...]) -> list[Any]:
        return [Instance(kind, {}, args, number) for number, args in enumerate(requests)]

    pairs = given("loglikelihood", *CONTINUED)
    expected, found = theirs.loglikelihood(pairs, disable_tqdm=True), ours.loglikelihood(pairs)
    assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=1e-3)
    assert [likeliest for _, likeliest in found] == [likeliest for _, likeliest in expected]
    if not ours.model.tokenizer.prefix:  # else its class predicts the start token, too, of which all texts have one
        texts = given("loglikelihood_rolling", *[(text,) for text in TEXTS if text])
        rolled = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
        assert ours.loglikelihood_rolling(texts) == pytest.approx(rolled, abs=2e-3)
    how = {"until": [" the"], "max_gen_toks": 8, "do_sample": False}
    prompts = given("generate_until", ("the cat", how), ("the dog slept", how))
    assert ours.generate_until(prompts) == theirs.generate_until(prompts, disable_tqdm=True)


def test_the_harness_runs(decoders: dict[str, Path], tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.task import ConfigurableTask

    rows = [{"text": f"the {animal}", "choices": [" ran", " slept"], "answer": n % 2} for n, animal in enumerate("ab")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ConfigurableTask(
        config={
            "task": "tiny",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{text}}",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    )
    found = lm_eval.simple_evaluate(
        model=lm_eval_model(decoders["own"], "cpu", "fp32"), tasks=[task], bootstrap_iters=0
    )
    assert found["results"]["tiny"]["acc,none"] in (0.0, 0.5, 1.0)


# -- mteb ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoders.save("sentences", tmp_path_factory.mktemp("sentences") / "minilm")


BATCHES = [{"text": ["the cat sat", "the dog"]}, {"text": ["a hen by the sea"]}]


def test_texts_come_in_batches(sentences: Path) -> None:
    model = MtebModel(sentences, device="cpu", precision="fp32")
    texts = [text for batch in BATCHES for text in batch["text"]]
    found = model.encode(BATCHES, task_metadata=None, hf_split="test", hf_subset="default", batch_size=8)
    assert found.shape == (3, 32)
    np.testing.assert_array_equal(found, load(sentences).embed(texts, "fp32"))  # type: ignore[union-attr]


def test_similarities_are_cosines(sentences: Path) -> None:
    model = MtebModel(sentences, device="cpu")
    first, second = np.random.default_rng(0).normal(size=(2, 4, 8))
    cosines = first @ second.T / np.linalg.norm(first, axis=1)[:, None] / np.linalg.norm(second, axis=1)
    np.testing.assert_allclose(model.similarity(first, torch.from_numpy(second)), cosines, atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(first, second), np.diag(cosines), atol=1e-6)
    np.testing.assert_allclose(model.similarity(first[0], second[0]), cosines[:1, :1], atol=1e-6)


def test_what_reads_no_texts_is_refused(decoders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="makes no vectors"):
        MtebModel(decoders["own"])


def test_mteb_runs(sentences: Path, tmp_path: Path) -> None:
    """The figures are those of the same directory in sentence-transformers."""
    mteb = pytest.importorskip("mteb")
    from mteb.mocks.mock_tasks import MockRetrievalTask, MockSTSTask
    from mteb.models.models_protocols import EncoderProtocol
    from sentence_transformers import SentenceTransformer

    ours = MtebModel(sentences, device="cpu", precision="fp32")
    assert isinstance(ours, EncoderProtocol)
    assert ours.mteb_model_meta.name == "selfsup/minilm"
    assert ours.mteb_model_meta.embed_dim == 32
    for task in (MockRetrievalTask(), MockSTSTask()):
        scores = [
            mteb.evaluate(model, task, cache=None).task_results[0].get_score()
            for model in (ours, SentenceTransformer(str(sentences), device="cpu"))
        ]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)
