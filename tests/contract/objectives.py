"""The objectives that the contract suite is run on, each in fp64 on a few small records."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from suite import RECORDS, SEED, Case
from torch import Tensor, nn

from selfsup.data.answers import Answered
from selfsup.data.pair_records import Framing, Segments, TextPairs, TwoCrops, neighbours
from selfsup.data.passages import Passages
from selfsup.data.records import Batch
from selfsup.data.sentences import Sentences
from selfsup.data.text import Windows
from selfsup.data.text_pairs import TextGroups
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.models.clip import Loss
from selfsup.models.convnet import ConvNet, ConvNetConfig
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.encoder import EncoderConfig, MaskedLanguageModel, TextEncoder, initialise
from selfsup.models.features import Features
from selfsup.models.pixel_decoder import PixelDecoder, PixelDecoderConfig
from selfsup.models.sentence_decoder import SentenceDecoder
from selfsup.models.static import StaticConfig, StaticEncoder
from selfsup.models.vision import VisionConfig, VisionTransformer
from selfsup.objectives.base import Collectives, Objective, Outputs, Task
from selfsup.objectives.captions import HiddenTokens
from selfsup.objectives.causal_lm import CausalLM
from selfsup.objectives.clip import CLIP
from selfsup.objectives.dino import DINO
from selfsup.objectives.distill import Distill, Map
from selfsup.objectives.distill_images import ImageDistillation, ImageTeacher, Moments, Target
from selfsup.objectives.distill_tokens import TokenDistillation
from selfsup.objectives.distillation import NEAREST
from selfsup.objectives.gaussian import of_one_place
from selfsup.objectives.lejepa import WEIGHTS, LeJEPA, Regularizer
from selfsup.objectives.mae import MAE
from selfsup.objectives.masked_lm import MaskedLM, Masking
from selfsup.objectives.multi_crop import Crops
from selfsup.objectives.pairs import Pairs
from selfsup.objectives.simclr import ProjectionHead, SimCLR
from selfsup.objectives.simcse import SentenceHead, SimCSE
from selfsup.objectives.teaching import Head, Network, Teaching
from selfsup.objectives.towers import ImageTower, SharedProjection, TextTower
from selfsup.objectives.tsdae import TSDAE, Swapped
from selfsup.objectives.vicreg import EPS, VICReg
from selfsup.seeding import derive, generator, seeded
from selfsup.views import View, dino_global, dino_local, dino_second, mae_view, simclr_view

# -- causal language modelling -------------------------------------------------------------------------------

END, VOCABULARY, WINDOW = 0, 11, 8


def documents_stream() -> np.ndarray:
    """Documents of 1 to 14 tokens: windows hold several, and the last window overlaps the one before it."""
    random = np.random.default_rng(5)
    stream = [END]
    while len(stream) < RECORDS * WINDOW:
        stream += [*random.integers(1, VOCABULARY, random.integers(1, 15)).tolist(), END]
    return np.array(stream[: RECORDS * WINDOW - 4], dtype=np.uint16)


def windows() -> Windows:
    return Windows(documents_stream(), WINDOW, END)


def causal_lm(seed: int, layers: int = 2, tied: bool = False) -> CausalLM:
    """A decoder whose every weight is random: as `initialise` leaves it, most gradients are zero at first."""
    shape = DecoderConfig(VOCABULARY, layers, 12, 2, 1, 6, 16, WINDOW, tied)
    decoder = Decoder(shape).double().initialise(generator(seed, "weights"))
    return CausalLM(shaken(decoder, seed), END, END)


def shaken(module: nn.Module, seed: int) -> Any:
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            noise = torch.randn(parameter.shape, generator=generator(seed, "noise", number), dtype=torch.double)
            parameter.add_(noise, alpha=0.2)
    return module


class CachedCausalLM(CausalLM):
    """Causal LM as if its records met in the score: caching must give what accumulation gives."""

    separable: ClassVar[bool] = False


def cached_causal_lm(seed: int) -> CachedCausalLM:
    """Tied, so that one matrix gets gradients both from the score and from the outputs."""
    return CachedCausalLM(causal_lm(seed, layers=1, tied=True).model, END, END)


def uniform_over_tokens(task: Task) -> dict[str, float]:
    return {"cross_entropy": math.log(VOCABULARY)}


# -- masked language modelling -------------------------------------------------------------------------------

TOKENIZER = train_tokenizer("characters", ["abc.,;:!"], family="encoder")
PASSAGE = 14


def passages() -> Passages:
    """Documents of 1 to 20 tokens, so that passages hold several; the last one is of special tokens for the most."""
    random = np.random.default_rng(5)
    content = (PASSAGE - 2) * RECORDS
    stream: list[int] = []
    while len(stream) < content - 10:
        text = random.integers(len(TOKENIZER.special), TOKENIZER.vocabulary, random.integers(1, 21))
        stream += TOKENIZER.frame(text).tolist()
    stream = [*stream[: content - 10], *TOKENIZER.frame([]).tolist() * 4, int(TOKENIZER.start)]
    return Passages(np.array(stream, dtype=np.uint16), PASSAGE, TOKENIZER)


def encoder_config(dropout: float, layers: int = 2) -> EncoderConfig:
    return EncoderConfig(
        vocabulary=TOKENIZER.vocabulary,
        layers=layers,
        width=12,
        heads=2,
        mlp=16,
        window=PASSAGE,
        tied=False,
        bias=True,
        dropout=dropout,
        local_window=6,
    )


def masked_lm(seed: int, dropout: float = 0.0) -> MaskedLM:
    """Spans, so that records of as many tokens hide different numbers of them."""
    model = MaskedLanguageModel(encoder_config(dropout)).double().initialise(generator(seed, "weights"))
    return MaskedLM(shaken(model, seed), Masking(TOKENIZER, "span"), rate=0.4, evaluation_rate=0.3)


def uniform_over_vocabulary(task: Task) -> dict[str, float]:
    return {"cross_entropy": math.log(TOKENIZER.vocabulary)}


# -- SimCSE --------------------------------------------------------------------------------------------------


def sentences() -> Sentences:
    """Of 1 to 14 tokens, packed differently in every micro-batch; some are there several times."""
    random = np.random.default_rng(6)
    special, vocabulary = len(TOKENIZER.special), TOKENIZER.vocabulary
    texts = [random.integers(special, vocabulary, random.integers(1, 15)) for _ in range(RECORDS)]
    for place, original in {9: 4, 17: 4, 21: 0, 22: 23, 5: 6}.items():
        texts[place] = texts[original]
    return Sentences(np.concatenate([TOKENIZER.frame(text) for text in texts]), PASSAGE, TOKENIZER)


def simcse(seed: int, dropout: float = 0.0) -> SimCSE:
    """A higher temperature than the recipe's: at that one, descent at the suite's learning rate leaps."""
    encoder = TextEncoder(encoder_config(dropout))
    objective = SimCSE(encoder, SentenceHead(encoder.config.width), "mean", 0.5, deletion=0.4).double()
    initialise(objective, generator(seed, "weights"))
    return shaken(objective, seed)


def uniform_over_others(task: Task) -> dict[str, float]:
    """The mean over the sentences: one that is there several times has fewer others."""
    keys = task["keys"]
    others = (keys[:, None] != keys).sum(1) + 1
    return {"info_nce": float(others.double().log().mean())}


# -- pairs of texts ------------------------------------------------------------------------------------------


FRAMINGS = Framing(TOKENIZER, "", PASSAGE), Framing(TOKENIZER, "a", PASSAGE)


def documents(counts: list[int], lengths: tuple[int, int]) -> TextGroups:
    """Groups of so many texts of so many tokens, whose kinds change slowly; some are there several times."""
    random = np.random.default_rng(6)
    kinds = np.arange(len(TOKENIZER.special), TOKENIZER.vocabulary)
    texts = [random.choice(np.roll(kinds, n // 3)[:2], random.integers(*lengths)) for n in range(sum(counts))]
    for place, original in {9: 4, 17: 4, 21: 0, 5: 6}.items():
        texts[place] = texts[original]
    return TextGroups(np.concatenate(texts), np.array(list(map(len, texts))), np.array(counts))


def adjacent() -> TextPairs:
    """Of two documents of which each sentence is a passage."""
    return neighbours(documents([RECORDS // 2 + 1] * 2, (7, 15)), FRAMINGS)


def with_negatives() -> TextPairs:
    """The same, two passages of other pairs beside each; some are alike to what they stand beside."""
    records = adjacent()
    chosen = np.random.default_rng(7).integers(len(records), size=(len(records), 2))
    records.chosen = {"negatives": torch.from_numpy(chosen.astype(np.int32))}
    return records


def segments() -> Segments:
    return Segments(documents([1] * RECORDS, (2, 20)), 20)


def pairs(seed: int, dropout: float = 0.0, crops: bool = False) -> Pairs:
    """At a higher temperature than the recipe's; its vectors can be cut, or not."""
    texts, dimensions = (TwoCrops(FRAMINGS), ()) if crops else (None, (5, 12))
    objective = Pairs(TextEncoder(encoder_config(dropout)), "mean", 0.5, texts, dimensions).double()
    initialise(objective, generator(seed, "weights"))
    return shaken(objective, seed)


def undecided_texts(task: Task) -> dict[str, float]:
    """The mean over both directions: what is equal, or of one place, is no other."""
    query, passage, places = task["query_keys"], task["passage_keys"], task["places"]
    same = (query[:, None] == query) | (passage[:, None] == passage)
    same |= (places[:, None] == places).any(-1) | (query[:, None] == passage)
    others = [(~same).sum(dim) + 1 for dim in (1, 0)]
    if "negative_keys" in task.tensors:
        more = task["negative_keys"].flatten()
        others[0] += ((query[:, None] != more) & (passage[:, None] != more)).sum(1)
    loss = float(torch.stack(others).double().log().mean())
    return {term: loss for term in task.counts if term != "found"} | {"found": 1.0}


# -- distillation --------------------------------------------------------------------------------------------


def answered() -> Answered:
    """Sentences with the answers of a teacher to them; those to equal sentences are equal."""
    own = sentences()
    answers = np.random.default_rng(9).normal(size=(RECORDS, 5)).astype(np.float32)
    keys = own.read(np.arange(RECORDS))["keys"].numpy()
    _, numbers = np.unique(keys, return_inverse=True)
    return Answered(own, answers, numbers)


def distill(seed: int, dropout: float = 0.0) -> Distill:
    encoder = TextEncoder(encoder_config(dropout)).initialise(generator(seed, "weights"))
    map = Map(encoder.config.width, [0.1, -0.2, 0.3, 0.0, 0.5], 0.7).initialise(generator(seed, "map"))
    return shaken(Distill(encoder, map, "mean", {"mse": 2.0, "cosine": 0.5}).double(), seed)


def distill_table(seed: int) -> Distill:
    """A table of token vectors, which lies in its teacher's space."""
    around = (int(TOKENIZER.start), int(TOKENIZER.end))
    table = StaticEncoder(StaticConfig(TOKENIZER.vocabulary, 5, around=around))
    nn.init.zeros_(table.embedding.weight)
    return shaken(Distill(table, nn.Identity(), "mean", {"mse": 2.0, "cosine": 0.5}).double(), seed)


def answers_of_nothing(task: Task) -> dict[str, float]:
    """Vectors of zeros, whose cosine with anything is 0."""
    return {"mse": float(task["answers"].double().square().mean()), "cosine": 1.0}


TEMPERATURE, HARD = 2.0, 0.3


def distill_tokens(seed: int) -> TokenDistillation:
    """From a narrower teacher."""
    teacher = Decoder(DecoderConfig(VOCABULARY, 1, 8, 1, 1, 8, 12, WINDOW, False)).double()
    shaken(teacher.initialise(generator(0, "teacher")), 1)  # as opened: no seed changes it
    return TokenDistillation(causal_lm(seed).model, teacher, END, END, TEMPERATURE, HARD)


def both_uniform(task: Task) -> dict[str, float]:
    """Student and teacher say that every token is as likely."""
    nothing = math.log(VOCABULARY)
    loss = ((1 - HARD) * TEMPERATURE**2 + HARD) * nothing
    return {"distillation": loss, "divergence": 0.0, "cross_entropy": nothing, "teacher_cross_entropy": nothing}


# -- TSDAE ---------------------------------------------------------------------------------------------------


def swapped_sentences() -> Swapped:
    return Swapped(sentences())


def tsdae(seed: int, dropout: float = 0.0) -> TSDAE:
    draws = generator(seed, "weights")
    model = MaskedLanguageModel(encoder_config(dropout)).double().initialise(draws)
    decoder = SentenceDecoder(model.config).double().initialise(draws)
    return shaken(TSDAE(model, decoder, "cls", deletion=0.4), seed)


def uniform_over_next_tokens(task: Task) -> dict[str, float]:
    """From whichever vector."""
    return dict.fromkeys(("cross_entropy", "swapped"), math.log(TOKENIZER.vocabulary))


# -- images --------------------------------------------------------------------------------------------------


class Pictures:
    """Of noise, in several sizes."""

    def __init__(self) -> None:
        random = np.random.default_rng(7)
        self.pixels = torch.from_numpy(random.integers(0, 256, (RECORDS, 3, 20, 20), dtype=np.uint8))
        self.sizes = torch.from_numpy(random.integers(14, 21, (RECORDS, 2)))

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {"pixels": self.pixels[indices], "sizes": self.sizes[indices]}


def vision_transformer(draws: torch.Generator) -> VisionTransformer:
    config = VisionConfig(size=12, patch=4, layers=2, width=16, heads=2, mlp=24, registers=1)
    return VisionTransformer(config).initialise(draws)


# -- distillation of images ----------------------------------------------------------------------------------


def distill_images(seed: int) -> ImageDistillation:
    """From a teacher that sees images larger and cut into more patches."""
    config = VisionConfig(size=16, patch=4, layers=1, width=12, heads=1, mlp=16, registers=0)
    random = np.random.default_rng(11)
    own, each = (torch.from_numpy(random.normal(size=(50, width)).astype(np.float32)) for width in (5, 12))
    features = Features("mean", torch.from_numpy(random.normal(size=(5, 12)).astype(np.float32)))
    teacher = ImageTeacher(VisionTransformer(config).initialise(generator(0, "teacher")), features, (3, 3))
    with seeded(seed, "head"):
        vectors, patches = Target(16, Moments.of(own)), Target(16, Moments.of(each))
    views = View(12, (0.5, 1.0)), View(16, (0.5, 1.0))
    student = vision_transformer(generator(seed, "weights"))
    return shaken(ImageDistillation(student, teacher, vectors, patches, *views, "cls", 0.7).double(), seed)


def the_mean_of_both(task: Task) -> dict[str, float]:
    """Vectors of zeros have no direction, and are no distance apart."""
    return {"vectors": 0.9, "patches": 0.9}


# -- SimCLR --------------------------------------------------------------------------------------------------


def simclr(seed: int) -> SimCLR:
    network = vision_transformer(generator(seed, "weights"))
    with seeded(seed, "head"):
        head = ProjectionHead(16, 8)
    return shaken(SimCLR(network, head, simclr_view(12), "mean", temperature=0.5).double(), seed)


CONVNET = ConvNetConfig(size=12, layers=1, width=4)


def simclr_convnet(seed: int) -> SimCLR:
    """On a network in whose layers the two views of an image meet."""
    network = ConvNet(CONVNET).initialise(generator(seed, "weights"))
    network.group = 2
    with seeded(seed, "head"):
        head = ProjectionHead(32, 8)
    return shaken(SimCLR(network, head, simclr_view(12), "mean", temperature=0.5).double(), seed)


def vicreg(seed: int) -> VICReg:
    network = vision_transformer(generator(seed, "weights"))
    with seeded(seed, "head"):
        expander = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8, bias=False))
    weights = {"invariance": 2.0, "variance": 3.0, "covariance": 1.0}
    return shaken(VICReg(network, expander, simclr_view(12), "mean", weights).double(), seed)


def saying_the_same_of_both(task: Task) -> dict[str, float]:
    """No vector varies, in either view."""
    return {"invariance": 0.0, "variance": 2 * (1 - EPS**0.5), "covariance": 0.0}


def uniform_over_other_views(task: Task) -> dict[str, float]:
    """The mean over the views: an image that is there several times is no negative of itself."""
    records = task["records"]
    others = 2 * (records[:, None] != records).sum(1) + 1
    return {"nt_xent": float(others.double().log().mean())}


# -- CLIP ----------------------------------------------------------------------------------------------------


class Captioned(Pictures):
    """The same with one to three captions each; some captions and some pictures are there several times."""

    def __init__(self) -> None:
        super().__init__()
        random = np.random.default_rng(8)
        special, vocabulary = len(TOKENIZER.special), TOKENIZER.vocabulary
        self.captions = random.integers(1, 4, RECORDS)
        self.tokens = torch.from_numpy(random.integers(special, vocabulary, (RECORDS, 3, PASSAGE)))
        self.tokens[:, :, 0] = int(TOKENIZER.start)
        self.lengths = torch.from_numpy(random.integers(2, PASSAGE + 1, (RECORDS, 3)))
        self.text_keys = torch.from_numpy(random.integers(0, 40, (RECORDS, 3)))
        self.image_keys = torch.from_numpy(random.integers(0, 60, RECORDS))

    def read(self, indices: np.ndarray) -> dict[str, Tensor]:
        names = ("tokens", "lengths", "text_keys", "image_keys")
        own = {name: getattr(self, name)[indices] for name in names}
        return super().read(indices) | own | {"captions": torch.from_numpy(self.captions[indices])}


def clip(seed: int, loss: Loss = "softmax", dropout: float = 0.0) -> CLIP:
    """The sigmoid loss with everything that may come on top: hidden tokens, and SimCLR on the same images."""
    draws = generator(seed, "weights")
    network, encoder = vision_transformer(draws), TextEncoder(encoder_config(dropout)).initialise(draws)
    image, text = (SharedProjection(part, 6).initialise(draws, Features()) for part in (16, 12))
    also, hidden = None, None
    if loss == "sigmoid":
        with seeded(seed, "head"):
            head = ProjectionHead(16, 8)
        also = SimCLR(network, head, simclr_view(12), "mean", temperature=0.5), 0.5
        hidden = HiddenTokens(0.3, int(TOKENIZER.mask or 0), tuple(TOKENIZER.special))
    towers = ImageTower(network, image, "mean"), TextTower(encoder, text, "mean")
    rates = {"image": 1.0, "text": 0.5}
    for tower in towers:
        shaken(tower, seed)
    return CLIP(*towers, View(12, (0.5, 1.0)), loss, 0.5, -2.0, rates, hidden, also).double()


FIGURES = {"temperature": float((-torch.tensor(-math.log(0.5)).double()).exp()), "modality_gap": 0.0}


def uniform_over_pairs(task: Task) -> dict[str, float]:
    """Scores of zero: of as many as are no copies of the caption or the picture."""
    same = (task["keys"][:, None] == task["keys"]).any(-1)
    others = (~same).sum(1) + 1
    return {"softmax": float(others.double().log().mean()), **FIGURES}


def undecided_pairs(task: Task) -> dict[str, float]:
    """As likely right as wrong, by the bias, of as many as are no copies."""
    same = (task["keys"][:, None] == task["keys"]).any(-1)
    views = Task({"records": task["simclr_records"]}, {})
    told = math.log1p(math.exp(-2.0))
    right, wrong = math.log1p(math.exp(2.0)), float((~same).sum(1).double().mean()) * told
    return {"sigmoid": right + wrong, **FIGURES, **uniform_over_other_views(views)}


# -- MAE -----------------------------------------------------------------------------------------------------


def mae(seed: int) -> MAE:
    decoder = PixelDecoder(PixelDecoderConfig(encoder=16, width=32, layers=1, patch=4, hidden=0.6))
    network = vision_transformer(generator(seed, "weights"))
    decoder.initialise(generator(seed, "decoder"))
    return shaken(MAE(network, decoder, mae_view(12)).double(), seed)


def mean_of_patches(task: Task) -> dict[str, float]:
    """The mean of the squares of hidden patches, which were brought to mean 0."""
    return {"mse": float(task["targets"].double().square().mean())}


# -- DINO ----------------------------------------------------------------------------------------------------


PROTOTYPES = 10


def dino(seed: int, targets: str = "sinkhorn") -> DINO:
    """With higher temperatures and a longer memory than the recipe's, so that plain descent does not leap."""
    draws = generator(seed, "weights")
    vit = vision_transformer(draws)
    head = Head(16, 12, 6, PROTOTYPES, normalised=targets == "sinkhorn").initialise(draws)
    crops = Crops(dino_global(12), dino_second(12), dino_local(12), 3)
    teaching = Teaching(targets, (0.3, 0.5), warmup=0.3, memory=0.2, frozen=0.0)
    student = shaken(Network(vit, head).double(), seed)
    return DINO(student, crops, teaching, 0.8, ibot=0.5, koleo=0.1).double()


def saying_the_same(task: Task) -> dict[str, float]:
    """Equal features are as near as a distance is still measured; all rows have one likeliest prototype."""
    nothing = math.log(PROTOTYPES)
    used = 1 / min(PROTOTYPES, task["globals"].shape[:2].numel())
    return {
        "dino": nothing,
        "ibot": nothing,
        "koleo": -math.log(NEAREST),
        "teacher_entropy": nothing,
        "prototypes_used": used,
    }


# -- LeJEPA --------------------------------------------------------------------------------------------------


def lejepa(seed: int, regularizer: Regularizer = "sigreg") -> LeJEPA:
    """With directions that do not fall into equal parts for two processes; and with the recipe's weight of sigreg and
    little of visreg, which divides by small deviations: at higher ones descent at the suite's learning rate leaps."""
    network = vision_transformer(generator(seed, "weights"))
    with seeded(seed, "head"):
        head = nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 6))
    crops = Crops(dino_global(12), dino_second(12), dino_local(8), 3)
    weight = {"sigreg": WEIGHTS["sigreg"], "visreg": 0.01}[regularizer]
    objective = LeJEPA(network, head, crops, "mean", regularizer, weight, slices=7, seed=SEED).double()
    return shaken(objective, seed)


def one_place(task: Task) -> dict[str, float]:
    """Crops of one image and those of others."""
    records = len(task["globals"])
    every = {name: of_one_place(name, records) for name in ("sigreg", "visreg")}
    return {"prediction": 0.0} | {name: every[name] for name in task.counts if name in every}


# -- a batch-coupled objective -------------------------------------------------------------------------------


class Vectors:
    """Random vectors of 5 numbers."""

    def __init__(self) -> None:
        self.x = torch.randn(RECORDS, 5, dtype=torch.double, generator=generator(0, "vectors"))

    def __len__(self) -> int:
        return len(self.x)

    def read(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {"x": self.x[torch.from_numpy(indices)]}


class TwoViews(Objective):
    """InfoNCE between two noised views of each vector, negatives from all processes (van den Oord et al. 2018).

    Each view looks for its other half among the other views of all records; the temperature is learnt.
    """

    separable: ClassVar[bool] = False
    weights: ClassVar[dict[str, float]] = {"second_finds_first": 0.5}

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 4))
        self.log_scale = nn.Parameter(torch.tensor(math.log(4.0)))
        self.double()

    def hide(self, batch: Batch) -> Task:
        views = torch.stack([batch.data["x"] + 0.3 * self._noise(batch, view) for view in (0, 1)], 1)
        count = torch.tensor(len(batch))
        return Task({"views": views}, {"first_finds_second": count, "second_finds_first": count})

    def _noise(self, batch: Batch, view: int) -> Tensor:
        places = zip(batch.epochs.tolist(), batch.records.tolist(), strict=True)
        return torch.stack(
            [
                torch.randn(5, dtype=torch.double, generator=generator(batch.seed, "noise", *place, view))
                for place in places
            ]
        )

    def predict(self, task: Task) -> Outputs:
        return {"embeddings": self.network(task["views"])}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        first, second = F.normalize(outputs["embeddings"], dim=-1).unbind(1)
        ranks = collectives.gather(torch.full((len(first),), collectives.rank))
        own = (ranks == collectives.rank).nonzero().squeeze(1)  # where my records stand among all
        scale = self.log_scale.exp()
        return {
            "first_finds_second": self._search(first, collectives.gather(second), scale, own),
            "second_finds_first": self._search(second, collectives.gather(first), scale, own),
        }

    def _search(self, queries: Tensor, keys: Tensor, scale: Tensor, own: Tensor) -> Tensor:
        return F.cross_entropy(scale * queries @ keys.T, own, reduction="sum")

    def after_step(self, step: int, steps: int) -> None:
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(4.2))


def two_views(seed: int, dropout: float = 0.0) -> TwoViews:
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "weights"))
        return TwoViews(dropout)


def uniform_over_records(task: Task) -> dict[str, float]:
    return dict.fromkeys(("first_finds_second", "second_finds_first"), math.log(len(task["views"])))


CASES = {
    case.name: case
    for case in (
        Case("causal-lm", windows, causal_lm, uniform_over_tokens, random=False),
        Case("cached-causal-lm", windows, cached_causal_lm, uniform_over_tokens, random=False),
        Case("masked-lm", passages, masked_lm, uniform_over_vocabulary, lambda seed: masked_lm(seed, 0.3)),
        Case("simcse", sentences, simcse, uniform_over_others, lambda seed: simcse(seed, 0.3)),
        Case("pairs", adjacent, pairs, undecided_texts, lambda seed: pairs(seed, 0.3), random=False),
        Case("pairs-negatives", with_negatives, pairs, undecided_texts, random=False),
        Case("crops", segments, lambda seed: pairs(seed, crops=True), undecided_texts),
        Case("distill", answered, distill, answers_of_nothing, lambda seed: distill(seed, 0.3), random=False),
        Case("distill-tokens", windows, distill_tokens, both_uniform, random=False),
        Case(
            "distill-images",
            Pictures,
            distill_images,
            the_mean_of_both,
            still=(
                "student.embeddings.mask_token",
                *(f"{part}_map.{name}" for part in ("vector", "patch") for name in ("mean", "deviation")),
            ),
        ),
        Case("tsdae", swapped_sentences, tsdae, uniform_over_next_tokens, lambda seed: tsdae(seed, 0.3)),
        Case("distill-table", answered, distill_table, answers_of_nothing, random=False),
        Case("simclr", Pictures, simclr, uniform_over_other_views, still=("network.embeddings.mask_token",)),
        Case(
            "simclr-convnet",
            Pictures,
            simclr_convnet,
            uniform_over_other_views,
            still=tuple(f"network.{name}" for name, _ in ConvNet(CONVNET).named_buffers()),
        ),
        Case("vicreg", Pictures, vicreg, saying_the_same_of_both, still=("network.embeddings.mask_token",)),
        Case(
            "clip",
            Captioned,
            clip,
            uniform_over_pairs,
            lambda seed: clip(seed, dropout=0.3),
            still=("image.network.embeddings.mask_token",),
        ),
        Case(
            "clip-sigmoid",
            Captioned,
            lambda seed: clip(seed, "sigmoid"),
            undecided_pairs,
            still=("image.network.embeddings.mask_token", "simclr.network.embeddings.mask_token"),
        ),
        Case("mae", Pictures, mae, mean_of_patches, still=("encoder.embeddings.mask_token",)),
        Case("dino", Pictures, dino, saying_the_same),
        Case("dino-centring", Pictures, lambda seed: dino(seed, "centring"), saying_the_same),
        Case("lejepa", Pictures, lejepa, one_place, still=("network.embeddings.mask_token",)),
        Case(
            "lejepa-visreg",
            Pictures,
            lambda seed: lejepa(seed, "visreg"),
            one_place,
            still=("network.embeddings.mask_token",),
        ),
        Case("two-views", Vectors, two_views, uniform_over_records, lambda seed: two_views(seed, 0.3)),
    )
}
