"""CLIP: an image finds its caption among all captions, and a caption its image (Radford et al. 2021, figure 3).

L = ½ Σ_i ( − log softmax_j(s · x_i·y_j)[i] − log softmax_j(s · y_i·x_j)[i] )     x, y: normalised vectors of both

or, as SigLIP (Zhai et al. 2023), every pair is told to belong together or not, by itself:

L = − Σ_i Σ_j log σ( z_ij (s · x_i·y_j + b) )                                     z_ij = 1 where i = j, else − 1
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsup.config import Count, Names, Rate, Real, Section, Share
from selfsup.data.mixture import Mixture
from selfsup.data.pairs import PairRecords, captions_of, open_pairs
from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.models.adapters import AnyEncoder
from selfsup.models.backbones import AnyBackbone, hide_nothing
from selfsup.models.cards import card, data_name, measured
from selfsup.models.clip import Loss, Similarity, read_clip
from selfsup.models.directories import find_model
from selfsup.models.encoder import EncoderConfig
from selfsup.models.encoder_layouts import SavedEncoder
from selfsup.models.features import Features
from selfsup.models.kinds import IMAGE, TEXT, in_one, two_towers
from selfsup.models.losses import at_least_single
from selfsup.models.packing import Pooling
from selfsup.models.parity import exactness, network_difference
from selfsup.models.tower_layouts import SavedTowers, read_towers
from selfsup.objectives.base import Collectives, Deferred, Objective, Outputs, Task
from selfsup.objectives.captions import HiddenTokens, TextSettings, TextSide, drawn_captions
from selfsup.objectives.checks.contrastive import FEWEST_RECORDS, small_batch
from selfsup.objectives.checks.pairs import PAIRS
from selfsup.objectives.images import ADAMW_LR, ImageRecipe
from selfsup.objectives.losses import info_nce, sigmoid_pairs
from selfsup.objectives.recipe import Effort
from selfsup.objectives.simclr import SimCLR, SimCLRSettings, build_simclr, settle_simclr
from selfsup.objectives.sizes import STARTED, settle_layer_decay, settle_rates, unresolved
from selfsup.objectives.starting import make_absolute, trained_by_muon
from selfsup.objectives.towers import ImageTower, SharedProjection, TextTower
from selfsup.objectives.two_views import require_several
from selfsup.report import Progress
from selfsup.seeding import generator
from selfsup.views import Preprocessing, View, centred, render

if TYPE_CHECKING:
    from selfsup.data.images import Images
    from selfsup.inference.clip import PairModel
    from selfsup.inference.pictures import CaptionedPictures

LARGEST_SCALE = 100.0  # of cosines (Radford et al. 2021, section 2.5)
TEMPERATURES = {"softmax": 0.07, "sigmoid": 0.1}  # at first: there, and Zhai et al. 2023, section 3.2
DIMENSION = 512  # of the shared space, at most
VIEW = 2  # its number; SimCLR's are 0 and 1
CROP = 0.5  # least share of an image that is seen
USAGE = """\
import selfsup

model = selfsup.load("path/to/this/directory")
images, texts = model.embed([image]), model.embed(["a red car"])  # uint8 arrays (height, width, 3), strings
"""
HIDDEN_TOKENS = 0.2  # of a caption: keeps few pairs from being learnt by heart (docs/LOG.md)


class CLIPSettings(Section):
    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="one right answer among all (CLIP), or each pair right or wrong (SigLIP)"
    )
    captions: Names = Field((), description="their columns; found by themselves where none is named")
    dimension: Count | None = Field(None, description="of the space that images and texts share")
    pooling: Literal["mean", "cls", "attention"] | None = Field(None, description="how an image becomes one vector")
    temperature: Annotated[Real, Field(ge=0.01, le=1)] | None = Field(
        None, description="at first; it is learnt, between .01 and 1"
    )
    crop: Annotated[Real, Field(gt=0, le=1)] | None = Field(
        None, description="least share of an image that a view shows"
    )
    hidden_tokens: Share | None = Field(None, description="share of a caption's tokens that is hidden in training")
    freeze: Literal["image", "text"] | None = Field(None, description="a tower that is not trained")
    image_rate: Rate | None = Field(None, description="factor of the learning rates in the image tower")
    text_rate: Rate | None = Field(None, description="and in the text tower")
    simclr: Annotated[Real, Field(ge=0)] = Field(
        0.0, description="weight of telling images apart by two views of each; 0 for none"
    )


class CLIP(Objective):
    """Two towers, and how near to each other what belongs together shall be.

    Args:
        view: what is seen of an image in training.
        temperature: by which cosines are divided at first.
        bias: of the sigmoid loss at first.
        rates: factors of the learning rates of the towers' networks.
        hidden: what is hidden of captions in training; None for nothing.
        simclr: the same images told apart by two views of each (Mu et al. 2022, "SLIP", section 3), and the weight of
            it in the loss; its network is the image tower's.
        preprocessing: of whole images in evaluation; by default that of networks which start anew.
    """

    separable: ClassVar[bool] = False

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        view: View,
        loss: Loss,
        temperature: float,
        bias: float,
        rates: Mapping[str, float],
        hidden: HiddenTokens | None = None,
        simclr: tuple[SimCLR, float] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        self.image, self.text, self.factors = image, text, rates
        self.view, self.loss, self.hidden = view, loss, hidden
        self.preprocessing = preprocessing or Preprocessing.plain(view.size)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.most = max(math.log(LARGEST_SCALE), -math.log(temperature))
        self.bias = nn.Parameter(torch.tensor(bias)) if loss == "sigmoid" else None
        self.weights = {"temperature": 0.0, "modality_gap": 0.0}
        self.simclr = None
        if simclr is not None:
            self.simclr, self.weights["nt_xent"] = simclr
        hide_nothing(image.network)

    def hide(self, batch: Batch) -> Task:
        """A view of each image (B, 3, S, S), and one of its captions (B, T): each hides the other.

        In evaluation they are seen as a user's are: the middle of the image, and no token hidden.
        """
        pixels, sizes = batch.data["pixels"], batch.data["sizes"]
        tokens, lengths, keys = drawn_captions(batch)
        if self.hidden is not None and self.training:
            tokens = self.hidden(tokens, batch)
        views = partial(centred, pixels, sizes, self.preprocessing)
        if self.training:
            views = partial(render, pixels, sizes, self.view, batch.seed, batch.epochs, batch.records, VIEW)
        made: dict[str, Callable[[], Tensor]] = {"views": views}
        keys = torch.stack((keys.to(pixels.device, non_blocking=True), batch.data["image_keys"]), 1)
        kept = {"tokens": tokens, "lengths": lengths, "keys": keys}  # the captions are on the host
        count = torch.tensor(len(batch))
        counts = dict.fromkeys((self.loss, "temperature", "modality_gap"), count)
        if self.simclr is not None:
            also = self.simclr.hide(batch)
            made |= {f"simclr_{name}": partial(also.__getitem__, name) for name in also.tensors}
            counts |= also.counts
        return Task(Deferred(made, kept), counts)

    def predict(self, task: Task) -> Outputs:
        """Where images and captions are put, (B, dimension) each."""
        outputs = {"image": self.image(task["views"]), "text": self.text(task["tokens"], task["lengths"])}
        if self.simclr is not None:
            outputs |= {f"simclr_{name}": z for name, z in self.simclr.predict(_part(task)).items()}
        return outputs

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        image, text = (F.normalize(at_least_single(outputs[name]), dim=-1) for name in ("image", "text"))
        scale, keys = self.log_scale.exp(), task["keys"]
        if self.bias is None:
            both = info_nce(image, text, keys, scale, collectives)
            total = (both + info_nce(text, image, keys, scale, collectives)) / 2
        else:
            total = sigmoid_pairs(image, text, keys, scale, self.bias, collectives)
        sums = {
            self.loss: total,
            "temperature": len(image) / scale.detach(),
            "modality_gap": len(image) * modality_gap(image.detach(), text.detach(), collectives),
        }
        if self.simclr is not None:
            mine = {name.removeprefix("simclr_"): z for name, z in outputs.items() if name.startswith("simclr_")}
            sums |= self.simclr.score(mine, _part(task), collectives)
        return sums

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """The temperature stays where logits cannot drown all but the nearest; a lower one than that may not fall."""
        self.log_scale.clamp_(0.0, self.most)

    def gradient_groups(self) -> Mapping[str, nn.Module]:
        return {IMAGE: self.image, TEXT: self.text}

    def rates(self) -> Mapping[nn.Parameter, float]:
        towers = {IMAGE: self.image, TEXT: self.text}
        return {p: self.factors[name] for name, tower in towers.items() for p in tower.network.parameters()}

    @property
    def similarity(self) -> Similarity:
        """How vectors are compared, as it stands."""
        bias = 0.0 if self.bias is None else float(self.bias.detach())
        return Similarity(self.loss, float(self.log_scale.detach().exp()), bias)


class _Part(Mapping[str, Tensor]):
    """Of a task's tensors those of SimCLR, each asked for only when it is needed."""

    def __init__(self, whole: Mapping[str, Tensor]) -> None:
        self._whole = whole

    def __getitem__(self, name: str) -> Tensor:
        return self._whole[f"simclr_{name}"]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix("simclr_") for name in self._whole if name.startswith("simclr_"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _part(task: Task) -> Task:
    """Of a task, what belongs to SimCLR."""
    return Task(_Part(task.tensors), {})


def chance(loss: Loss, batch: int) -> float:
    """The loss where each of a batch may be right; of the sigmoid loss, each pair with the same probability."""
    wrong = (batch - 1) * math.log1p(1 / (batch - 1)) if loss == "sigmoid" and batch > 1 else 0.0
    return math.log(batch) + wrong


def modality_gap(image: Tensor, text: Tensor, collectives: Collectives) -> Tensor:
    """The distance between the mean of all images and that of all texts (Liang et al. 2022, "Mind the Gap", section
    4.1), of normalised vectors (n, dimension)."""
    count = collectives.sum(torch.tensor(float(len(image)), device=image.device))
    gap: Tensor = (collectives.sum((image - text).sum(0)) / count).norm()
    return gap


class CLIPRecipe(ImageRecipe):
    """From images with captions to two towers into one space: `model.*` is the image tower, `text.*` the text tower."""

    name = "clip"
    shards = True
    bodies = (("model.init", "image.network"), ("text.init", "text.network"))
    section = CLIPSettings
    inspector = "pairs"
    idea = "an image finds its caption among those of others, and a caption its image"
    checks = (small_batch, *PAIRS)
    fewest = FEWEST_RECORDS

    @classmethod
    def sections(cls) -> dict[str, type[Section]]:
        return super().sections() | {"text": TextSettings, "simclr": SimCLRSettings}

    @classmethod
    def upgraded(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Older runs say that vectors are not whitened, which they never are, and nothing of SimCLR."""
        model = {key: value for key, value in (config.get("model") or {}).items() if key != "whiten"}
        return {"simclr": SimCLRSettings().model_dump(), **config, "model": model}

    def compose(self) -> None:
        super().compose()
        self.options = self.settings.section("clip", CLIPSettings)
        self.text = TextSide(self.settings)
        self._start_both_towers()

    def reads(self) -> set[str]:
        unread = {"model.whiten"}
        if not self.options.simclr:
            unread |= {key for key in super().reads() if key.startswith("simclr.")}
        adapters = {"model.lora", "model.lora_alpha", "model.lora_targets"}  # of either tower
        return super().reads() - unread | adapters | {"data.tokenizer", "data.vocabulary", "data.window"}

    # -- data ----------------------------------------------------------------------------------------------

    def open(self, progress: Progress) -> None:
        """With the captions comes their tokenizer, trained on those of the training part where none is named."""
        super().open(progress)
        trained, _ = self.parts()
        self.text.open(captions_of(self.images).take(trained).texts())

    def open_source(self, source: object, how: dict[str, Any], progress: Progress) -> Images:
        return open_pairs(source, **how, captions=self.options.captions, progress=progress)

    def _start_both_towers(self) -> None:
        """A model of two towers that is named for the one of images starts the other one too, unless it is named."""
        place = self.settings["model.init"]
        if place is not None and self.settings["text.init"] is None and two_towers(find_model(place)):
            self.settings.change("text.init", place, self.settings.origin("model.init"))
        for key in ("model.init", "text.init"):
            make_absolute(self.settings, key)

    @cached_property
    def both(self) -> Similarity | SavedTowers | None:
        """The model of two towers that both start from, where one is named for both: how it compares them, and, of one
        in a single directory, all that it holds."""
        place = self.settings["model.init"]
        if place is None or place != self.settings["text.init"] or not two_towers(directory := find_model(place)):
            return None
        return read_towers(directory) if in_one(directory) else read_clip(directory)

    @property
    def known(self) -> Similarity | None:
        """How vectors were compared in the model of two towers that both start from."""
        return self.both.similarity if isinstance(self.both, SavedTowers) else self.both

    @property
    def original(self) -> SavedTowers | None:
        """The directory of both towers into whose class the model goes back, which has no place for another loss."""
        both = self.both
        return both if isinstance(both, SavedTowers) and both.similarity.loss == self.options.loss else None

    def fingerprint(self) -> str:
        parts = super().fingerprint(), self.text.tokenizer.fingerprint
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def counts(self) -> dict[str, int]:
        return super().counts() | self._caption_counts | {"dimensions": self.settings["clip.dimension"]}

    @cached_property
    def _caption_counts(self) -> dict[str, int]:
        """The captions, and those of them that equal an earlier one."""
        texts = captions_of(self.images).texts()
        return {"captions": len(texts), "duplicate_captions": len(texts) - len(set(texts))}

    def records_of(self, indices: npt.NDArray[np.int64]) -> PairRecords:
        tokenizer, window = self.text.tokenizer, self.settings["data.window"]
        return PairRecords(self.images, indices, self.least, tokenizer, window)

    # -- sizes ---------------------------------------------------------------------------------------------

    def settle(self, effort: Effort) -> None:
        settings, origin = self.settings, self.network.origin
        if origin is None:
            settings.settle("clip.pooling", "mean", "recipe")
        else:
            settings.settle("clip.pooling", origin.features.pooling, "init")
        if self.known is not None and settings.origin("clip.loss") == "default":
            settings.change("clip.loss", self.known.loss, "init")
        self.text.settle(effort)
        self.settle_size()
        self.network.settle_shape(effort, self.views * len(self.images))
        if self.pooling not in self.network.poolings:
            raise UserError(
                f"clip.pooling={self.pooling} is no way in which {self.network.named} makes a vector of an image; give "
                f"one of {', '.join(self.network.poolings)}."
            )
        self.cut()
        self.settle_batch(effort)
        self.settle_rates()
        self.settle_towers()
        require_several(settings)
        if settings.origin("evaluate.protocols") == "default" and self._can_be_mistaken():
            settings.change("evaluate.protocols", ("retrieval",), "recipe")
        settings.settle("clip.crop", CROP, "recipe")
        settings.settle("clip.hidden_tokens", HIDDEN_TOKENS if self.text.hides else 0.0, "recipe")
        if self.known is None:
            settings.settle("clip.temperature", TEMPERATURES[self.options.loss], "recipe")
        self.settle_dimension()
        if self.options.simclr:
            settle_simclr(settings)

    def settle_size(self) -> None:
        """Both towers of one model see images as they did; one alone takes smaller ones too."""
        if isinstance(self.both, SavedTowers):
            size = self.both.image.preprocessing.size
            self.settings.settle("data.size", size, "init")
            self._require_own("data.size", size)
        super().settle_size()

    def settle_dimension(self) -> None:
        """Of the shared space."""
        settings, width = self.settings, min(self.network.width, self.text.width)
        if isinstance(self.both, SavedTowers):
            dimension = self.both.text.features.dimension(self.text.width)
            settings.settle("clip.dimension", dimension, "init")
            self._require_own("clip.dimension", dimension)
        settings.settle("clip.dimension", min(DIMENSION, width), "size")

    def _require_own(self, key: str, own: int) -> None:
        """Raise a UserError where the settings ask for another number than a model of two towers has."""
        if self.settings[key] != own:
            raise UserError(
                f"{self.settings['model.init']} has {key} {own}, so it is not {self.settings[key]}; leave it out."
            )

    def settle_rates(self) -> None:
        """Of what starts from nothing, where the towers have factors of their own; of all where all was started."""
        settings, places = self.settings, [self.settings[key] for key in ("model.init", "text.init")]
        strange = [place for place in places if place is not None and not trained_by_muon(place)]
        if strange and settings.origin("optim.matrices") == "default" and unresolved(settings):
            settings.change("optim.matrices", "adamw", "init")
        settle_layer_decay(settings, places[0] is not None)
        width = (self.network.width + self.text.width) // 2
        settle_rates(settings, width, ADAMW_LR, started=self.known is not None)

    def settle_towers(self) -> None:
        """How fast each is trained; raises a UserError where one is to stay as it is that knows nothing."""
        self._refuse_idle_towers()
        for tower, place in (("image", self.settings["model.init"]), ("text", self.settings["text.init"])):
            rate, origin = (1.0, "recipe") if place is None or self.known is not None else (STARTED, "init")
            self.settings.settle(f"clip.{tower}_rate", rate, origin)

    def _can_be_mistaken(self) -> bool:
        """Whether there are several images and captions among those held out."""
        _, held_out = self.parts()
        captions = captions_of(self.images).take(held_out).texts()
        return min(len(set(self.images.hashes[held_out].tolist())), len(set(captions))) > 1

    def _refuse_idle_towers(self) -> None:
        """Raise a UserError where a tower is to stay as it is that knows nothing, or is to learn all the same."""
        settings, frozen = self.settings, self.settings["clip.freeze"]
        started = {IMAGE: settings["model.init"] or self.module, TEXT: settings["text.init"]}
        if frozen is not None and started[frozen] is None:
            raise UserError(
                f"clip.freeze={frozen} keeps a tower that knows nothing yet; start it from a run (--{frozen}-init), or "
                "leave it out."
            )
        if frozen == IMAGE and settings["clip.simclr"]:
            raise UserError("clip.simclr trains the image tower, which clip.freeze=image keeps; leave one out.")

    @property
    def pooling(self) -> Pooling:
        return self.options.pooling or super().pooling

    # -- the objective -------------------------------------------------------------------------------------

    def build(self) -> CLIP:
        settings, options = self.settings, self.options
        image = ImageTower(*self._image_network(), self.pooling)
        text = TextTower(*self._text_network(), self.text.features.pooling)
        for name, tower in ((IMAGE, image), (TEXT, text)):
            if options.freeze == name:
                tower.freeze()
        hidden = self.text.hiding(settings["clip.hidden_tokens"])
        view = self.seen(View(settings["data.size"], (settings["clip.crop"], 1.0), flip=0.0))
        simclr = build_simclr(settings, image.network, self.pooling, self.seen) if options.simclr else None
        return CLIP(
            image,
            text,
            view,
            options.loss,
            self.temperature,
            self.bias,
            {IMAGE: settings["clip.image_rate"], TEXT: settings["clip.text_rate"]},
            hidden if hidden.share else None,
            None if simclr is None else (simclr, options.simclr),
            self.network.preprocessing,
        )

    @property
    def temperature(self) -> float:
        """At first."""
        if self.known is not None and self.settings["clip.temperature"] is None:
            return 1 / self.known.scale
        return float(self.settings["clip.temperature"])

    @property
    def bias(self) -> float:
        """At first: as many pairs are wrong as the others of a batch for one that is right."""
        if self.known is not None and self.known.loss == "sigmoid":
            return self.known.bias
        return -math.log(self.settings["train.batch"] - 1)

    def _image_network(self) -> tuple[AnyBackbone, SharedProjection | None]:
        network, origin = self.network.build(), self.network.origin
        known = Features() if origin is None else origin.features
        return network, self._projection(IMAGE, network.dimension, known)

    def _text_network(self) -> tuple[AnyEncoder, SharedProjection | None]:
        return self.text.build(), self._projection(TEXT, self.text.width, self.text.features)

    def _projection(self, tower: str, width: int, known: Features) -> SharedProjection | None:
        kept = self.original is not None  # as there is a place for it
        if kept and known.weight is None:
            return None
        draws = generator(self.settings["train.seed"], f"{tower} projection")
        biased = not kept or known.bias is not None
        return SharedProjection(width, self.settings["clip.dimension"], biased).initialise(draws, known)

    def encoder(self, objective: Objective) -> AnyBackbone:
        return cast(CLIP, objective).image.network

    def flops_per_record(self) -> float:
        """Of both towers; what SimCLR sees of an image comes on top."""
        seen = 1 + 2 * (self.options.simclr > 0)
        return float(seen * self.network.flops + self.text.flops(self._caption_length))

    @property
    def _caption_length(self) -> float:
        """Tokens of a caption in the mean; a guess before they are counted."""
        known = hasattr(self, "train")
        return float(self._captioned.mean_length if known else self.settings["data.window"] / 2)

    @property
    def _captioned(self) -> PairRecords:
        """The images that are trained on with their captions."""
        records = self.train.together if isinstance(self.train, Mixture) else self.train
        return cast("PairRecords", records)

    def facts(self) -> dict[str, str]:
        settings, options, counts = self.settings, self.options, self.counts()
        frozen = "" if options.freeze is None else f"; the {options.freeze} tower's network stays as it is"
        captions = self._captioned
        of_images = super().facts()
        return (
            of_images
            | {
                "captions": f"{counts['captions']:,}, {counts['duplicate_captions']:,} of them like an earlier one, "
                f"{captions.mean_length:.1f} tokens in the mean, {captions.truncated:,} longer than "
                f"{settings['data.window']} lose their end, {settings['clip.hidden_tokens']:.0%} of the tokens hidden",
                "text": self.text.describe(),
                "space": f"{options.dimension} dimensions ({settings.origin('clip.dimension')}), {options.loss} loss, "
                f"temperature {self.temperature:g} at first{frozen}",
                "view": f"of {settings['clip.crop']:.0%} to 100% of an image ({settings.origin('clip.crop')})",
            }
            | self._started(of_images.get("start"))
        )

    def _started(self, of_images: str | None) -> dict[str, str]:
        """Where towers are started from; of layouts of others, how exact they are, which is said of images already."""
        exact = {"images": of_images, "texts": self._text_exactness}
        also = "".join(f"; {what}: {said}" for what, said in exact.items() if said is not None)
        if self.known is not None:
            whole = f"both towers of {self.settings['model.init']}, their maps, and how they are compared"
            return {"start": whole + also}
        places = {IMAGE: self.settings["model.init"], TEXT: self.settings["text.init"]}
        told = [
            f"{tower} tower of {place} at {self.settings[f'clip.{tower}_rate']:g} times the rates"
            for tower, place in places.items()
            if place is not None
        ]
        return {"start": ", ".join(told) + also} if told else {}

    @cached_property
    def _text_exactness(self) -> str | None:
        """Of a text encoder of another layout than that of new ones."""
        origin = self.text.origin
        if not isinstance(origin, SavedEncoder) or origin.config.layout == EncoderConfig.layout:
            return None
        difference = network_difference(origin.directory, origin.encoder())
        return f"{origin.config.layout} of transformers; {exactness(difference)}"

    def chance(self, records: int) -> float:
        """With that of SimCLR, where it is a term."""
        return chance(self.options.loss, records) + self.options.simclr * math.log(2 * records - 1)

    def reading_options(self) -> dict[str, Any]:
        return {"captions": self.options.captions}

    # -- what is left of it --------------------------------------------------------------------------------

    def features(self, objective: Objective, records: int) -> npt.NDArray[np.float32] | None:
        """Of held-out images, in the space that both towers share."""
        states = super().features(objective, records)
        return None if states is None else self.definition(objective).map(torch.from_numpy(states)).numpy()

    def definition(self, objective: Objective) -> Features:
        return cast(CLIP, objective).image.features

    def model(self, objective: Objective) -> PairModel:  # type: ignore[override]
        from selfsup.inference.clip import PairModel
        from selfsup.inference.encoder import EncoderModel

        clip = cast(CLIP, objective)
        text = EncoderModel(clip.text.network, self.text.tokenizer, clip.text.features)
        return PairModel(super().model(objective), text, clip.similarity)

    def pictures(self, indices: npt.NDArray[np.int64]) -> CaptionedPictures:
        """As images alone are, with their captions."""
        from selfsup.inference.pictures import CaptionedPictures

        return CaptionedPictures(self.images, self.settings["data.size"], indices)

    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        """Both towers as model directories of their own, side by side, and how their vectors are compared; or in one,
        of the class that they came from."""
        from selfsup.models.clip import save_clip
        from selfsup.models.tower_layouts import save_towers

        clip = cast(CLIP, objective)
        save: Any = partial(save_clip, **self.network.brought, text_origin=self.text.kept)
        if self.original is not None:
            save = partial(save_towers, origin=self.original)
        summary["max_difference"] = save(
            directory,
            clip.image.network,
            clip.image.features,
            clip.text.network,
            self.text.tokenizer,
            clip.text.features,
            clip.similarity,
            lambda differences: self._pair_card(summary, differences),
        )

    @property
    def _layout(self) -> str:
        """In words."""
        if self.original is not None:
            return f"in one directory, of the class that {Path(self.settings['model.init']).name} is of"
        return (
            "image/ (DINOv3 ViT, or the network that was named) and text/ (ModernBERT, or the one that was named), "
            "each with features.json, the map into the shared space"
        )

    def _pair_card(self, summary: dict[str, Any], differences: dict[str, float | None]) -> str:
        told = "; ".join(f"{tower} {_shown(value)}" for tower, value in differences.items())
        return card(
            f"Images and texts in one space, trained on {data_name(self.settings['data.source'])}",
            f"{self.network.describe()}; {self.text.describe()}. Trained on {len(self.train):,} pairs with selfsup: "
            f"{summary['steps']:,} steps.",
            {
                "Validation loss": measured(summary),
                "Towers": f"{self._layout}; against stock transformers, in fp32: {told}",
            },
            USAGE,
            task="zero-shot-image-classification",
        )


def _shown(difference: float | None) -> str:
    return "unchecked" if difference is None else f"max |Δ| = {difference:.2e}"
