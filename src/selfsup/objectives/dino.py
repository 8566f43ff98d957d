"""DINO with masked patches: a student says of parts of an image what its teacher says of more of it.

L = − mean_(t, s) p(g_t) · log q(x_s)          g_t: a global crop whole; x_s: the other global crop, or a local crop
    − λ_i mean_j p(g_j) · log q(ĝ_j)           ĝ: global crops with the patches j hidden
    − λ_k mean_i log min_(j ≠ i) ‖f_i − f_j‖    f: class tokens of the student's global crops, before the head

DINO (Caron et al. 2021, equation 3), iBOT (Zhou et al. 2022, section 3), KoLeo (Oquab et al. 2023, "DINOv2",
section 4). p is the teacher's distribution over prototypes, made by Sinkhorn-Knopp or centring, q the student's; the
teacher is a moving average of the student.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, TypeAlias, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from selfsup.config import Count, Rate, Real, Share
from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.models.backbones import AnyBackbone, hide_nothing
from selfsup.models.losses import at_least_single
from selfsup.models.packing import Pooling
from selfsup.models.vision import VisionTransformer
from selfsup.objectives.base import Collectives, Deferred, Objective, Outputs, Task
from selfsup.objectives.checks.distillation import DISTILLATION
from selfsup.objectives.distillation import centred, in_use, koleo, sinkhorn_knopp, soft_cross_entropy
from selfsup.objectives.images import ImageRecipe
from selfsup.objectives.multi_crop import (
    GLOBALS,
    Crops,
    CropSettings,
    build_crops,
    local_share,
    require_crops,
    settle_crops,
    told_crops,
)
from selfsup.objectives.recipe import Effort
from selfsup.objectives.sizes import power_of_two
from selfsup.objectives.teaching import LONGEST_MEMORY, Head, Network, Teaching
from selfsup.seeding import generator
from selfsup.views import block_patches

HIDDEN_SHARE = (0.1, 0.5)  # of the patches of a masked crop (Zhou et al. 2022)
MASKED = 0.5  # of the global crops
IBOT = 0.2  # weight: at 1, that of Zhou et al. (2022), short runs learn less of the whole image
CENTRE_MOMENTUM = 0.9  # Caron et al. 2021, appendix
IMAGES_PER_PROTOTYPE = 16  # of 1.3 million images that makes the 65,536 prototypes of DINO
PROTOTYPES = (256, 65536)
MANY = 100_000  # images, from which a teacher may become softer
TEMPERATURES = ((0.04, 0.04), (0.04, 0.07))  # of the teacher, of few images and of many
WIDEST_HEAD, WIDEST_BOTTLENECK = 2048, 256  # Caron et al. 2021, appendix C
FIGURES = ("teacher_entropy", "prototypes_used")  # that no gradient comes from
Place: TypeAlias = tuple[int, np.ndarray, np.ndarray]


class DINOSettings(CropSettings):
    prototypes: Count | None = Field(None, description="vectors that what is seen is compared with")
    hidden: Count | None = Field(None, description="hidden width of the head")
    bottleneck: Count | None = Field(None, description="dimension of the prototypes")
    weight_norm: bool = Field(True, description="prototypes have length 1")
    targets: Literal["sinkhorn", "centring"] = Field(
        "sinkhorn", description="what keeps the teacher from saying the same of every image"
    )
    temperature: Rate = Field(0.1, description="of the student's softmax")
    teacher_temperature: tuple[Rate, Rate] | None = Field(
        None, description="of the teacher's softmax, at first and from the end of the warm-up on"
    )
    warmup: Share = Field(0.3, description="share of the run in which the teacher's temperature rises")
    memory: Annotated[Real, Field(gt=0, le=1)] = Field(
        0.005, description="share of the run that the teacher averages the student over at first"
    )
    frozen: Share = Field(0.01, description="share of the run in which the prototypes stay as they are")
    ibot: Annotated[Real, Field(ge=0)] | None = Field(
        None, description="weight of predicting hidden patches; 0 hides none"
    )
    koleo: Annotated[Real, Field(ge=0)] = Field(0.1, description="weight of keeping images apart; 0 for none")


class DINO(Objective):
    """Self-distillation over crops and hidden patches.

    Args:
        student: is trained; the teacher starts as its copy, and is what a user keeps.
        temperature: of the student's softmax.
        ibot, koleo: weights of these terms; at 0 they are left out, and without iBOT's no patch is hidden, which only
            a vision transformer can.
    """

    separable: ClassVar[bool] = False

    def __init__(
        self, student: Network, crops: Crops, teaching: Teaching, temperature: float, ibot: float, koleo: float
    ) -> None:
        super().__init__()
        self.student = student
        if not ibot:
            hide_nothing(student.backbone)
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        self.crops, self.teaching, self.temperature = crops, teaching, temperature
        self.weights = {"ibot": ibot, "koleo": koleo, **dict.fromkeys(FIGURES, 0.0)}
        self.done, self.steps = 0, 1  # updates made, of how many
        self.means: dict[str, Tensor] = {}  # of the teacher's logits, in this step
        if teaching.targets == "centring":
            kinds = ("class", "patch") if ibot else ("class",)
            for kind in kinds:
                self.register_buffer(f"{kind}_centre", torch.zeros(len(student.head.prototypes)))

    # -- hide ----------------------------------------------------------------------------------------------

    def hide(self, batch: Batch) -> Task:
        """Two global crops (B, 2, 3, S, S), local ones (B, L, 3, s, s), and which patches of the former are hidden,
        (B, 2, P) bool."""
        kept: dict[str, Tensor] = {}
        shown = torch.tensor(GLOBALS * len(batch))
        counts = {"dino": shown * (1 + self.crops.count), **dict.fromkeys(FIGURES, shown)}
        if self.weights["koleo"]:
            counts["koleo"] = shown
        if self.weights["ibot"]:
            place = (batch.seed, batch.epochs, batch.records)
            hidden = torch.stack([self._mask(place, number) for number in range(GLOBALS)], 1)
            kept["hidden"] = hidden.to(batch.data["pixels"].device)
            counts["ibot"] = hidden.sum()  # where it was drawn: known without waiting for a device
        return Task(Deferred(self.crops.made(batch), kept), counts)

    def _mask(self, place: Place, number: int) -> Tensor:
        config = cast(VisionTransformer, self.student.backbone).config
        side = self.crops.first.size
        return block_patches(*place, number, config.grid(side, side), HIDDEN_SHARE, MASKED)

    # -- predict -------------------------------------------------------------------------------------------

    def predict(self, task: Task) -> Outputs:
        """Where the head puts what student and teacher see.

        Returns:
            globals (B, 2, bottleneck), locals (B, L, bottleneck), teacher (B, 2, bottleneck): of class tokens;
            features (B, 2, width): the student's class tokens themselves, of the global crops;
            patches, teacher_patches (B, 2 · P, bottleneck): of the hidden patches; of others zero.
        """
        pixels, hidden = task["globals"].flatten(0, 1), task.tensors.get("hidden")
        places = hidden_places(task)
        with torch.no_grad():
            classes, patches = self.teacher.see(pixels)
            vectors = self.teacher.head(torch.cat((classes, patches.flatten(0, 1)[places])))
            taught = vectors.split((len(classes), len(places)))
        classes, patches = self.student.see(pixels, None if hidden is None else hidden.flatten(0, 1))
        local = self.student.see(task["locals"].flatten(0, 1))[0] if self.crops.count else classes[:0]
        vectors = self.student.head(torch.cat((classes, local, patches.flatten(0, 1)[places])))
        said = vectors.split((len(classes), len(local), len(places)))
        records = len(pixels) // GLOBALS
        outputs = {
            "globals": said[0].view(records, GLOBALS, -1),
            "locals": said[1].view(records, self.crops.count, vectors.shape[1]),
            "teacher": taught[0].view(records, GLOBALS, -1),
            "features": classes.view(records, GLOBALS, -1),
        }
        if hidden is not None:
            outputs["patches"] = spread_out(said[2], places, hidden)
            outputs["teacher_patches"] = spread_out(taught[1], places, hidden)
        return outputs

    # -- score ---------------------------------------------------------------------------------------------

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        teachers = self.teacher.head.directions()
        targets = self._targets("class", outputs["teacher"].flatten(0, 1), teachers, collectives)
        students = self._student_prototypes()
        sums = {
            "dino": self._crops(outputs, targets, students),
            "teacher_entropy": torch.special.entr(targets).sum(),
            "prototypes_used": in_use(targets, collectives) * len(targets),
        }
        if self.weights["koleo"]:
            sums["koleo"] = sum(koleo(crop, collectives) for crop in outputs["features"].unbind(1))
        if self.weights["ibot"]:
            places = hidden_places(task)
            seen, said = (outputs[name].flatten(0, 1)[places] for name in ("teacher_patches", "patches"))
            targets = self._targets("patch", seen, teachers, collectives)
            sums["ibot"] = soft_cross_entropy(said[:, None], students, targets, self.temperature)
        return sums

    def _crops(self, outputs: Outputs, targets: Tensor, prototypes: Tensor) -> Tensor:
        """Σ over pairs: each global crop with the other one's target, each local crop with both targets."""
        others = outputs["globals"].flip(1).flatten(0, 1)[:, None]
        total = soft_cross_entropy(others, prototypes, targets, self.temperature)
        if self.crops.count:
            both, local = targets.view(-1, GLOBALS, len(prototypes)).mean(1), outputs["locals"]
            total = total + GLOBALS * soft_cross_entropy(local, prototypes, both, self.temperature)
        return total

    def _student_prototypes(self) -> Tensor:
        """While they are frozen nothing makes a gradient for them, so that no optimizer moves them."""
        head = self.student.head
        head.prototypes.requires_grad_(self.done >= self.teaching.frozen * self.steps)
        return head.directions()

    @torch.no_grad()
    def _targets(self, kind: str, vectors: Tensor, prototypes: Tensor, collectives: Collectives) -> Tensor:
        """What the teacher says of (n, bottleneck): (n, K), in fp32 or wider."""
        logits = at_least_single(vectors) @ at_least_single(prototypes).T  # divided by .04: bf16 would be noise
        temperature = self.teaching.temperature(self.done / self.steps)
        if self.teaching.targets == "sinkhorn":
            return sinkhorn_knopp(logits, temperature, collectives)
        if self.training:
            count = collectives.sum(torch.tensor(float(len(logits)), device=logits.device))
            self.means[kind] = collectives.sum(at_least_single(logits).sum(0)) / count.clamp(min=1)
        return centred(logits, self.get_buffer(f"{kind}_centre"), temperature)

    # -- between steps -------------------------------------------------------------------------------------

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """The teacher and its centres move, and the schedules."""
        self.done, self.steps = step + 1, steps
        own, followed = (list(network.state_dict().values()) for network in (self.teacher, self.student))
        moving = [number for number, tensor in enumerate(own) if tensor.is_floating_point()]
        share = 1 - self.teaching.momentum(step, steps)
        torch._foreach_lerp_([own[n] for n in moving], [followed[n] for n in moving], share)
        for kind, mean in self.means.items():
            self.get_buffer(f"{kind}_centre").lerp_(mean, 1 - CENTRE_MOMENTUM)

    def train(self, mode: bool = True) -> DINO:
        """The teacher always stands as in evaluation: without dropout, and with averaged statistics where it keeps
        any (Cai et al. 2021, "Exponential Moving Average Normalization")."""
        super().train(mode)
        self.teacher.eval()
        return self

    def get_extra_state(self) -> Tensor:
        """Where the run stands, for the schedules to go on from."""
        return torch.tensor([self.done, self.steps])

    def set_extra_state(self, state: Tensor) -> None:
        self.done, self.steps = state.tolist()

    def vectors(self) -> Iterable[nn.Parameter]:
        return (*super().vectors(), self.student.head.prototypes)


def hidden_places(task: Task) -> Tensor:
    """Positions of the hidden patches among all of the batch, (m,); none where the task hides none."""
    hidden = task.tensors.get("hidden")
    if hidden is None:
        return torch.empty(0, dtype=torch.long, device=task["globals"].device)
    return torch.nonzero_static(hidden.flatten(), size=int(task.counts["ibot"])).squeeze(1)


def spread_out(vectors: Tensor, places: Tensor, hidden: Tensor) -> Tensor:
    """Vectors (m, width) at their places, zeros elsewhere: (B, 2 · P, width), so that each record has its own."""
    everywhere = vectors.new_zeros(hidden.numel(), vectors.shape[1])
    return everywhere.index_copy(0, places, vectors).view(len(hidden), -1, vectors.shape[1])


class DINORecipe(ImageRecipe):
    """From images to the teacher's network, whose class token tells what an image shows."""

    name = "dino"
    shards = True
    bodies = (("model.init", "student.backbone"), ("model.init", "teacher.backbone"))
    section = DINOSettings
    inspector = "crops"
    idea = (
        "a student that sees a part of an image says what its teacher says of another part, and of patches that the "
        "student cannot see"
    )
    checks = DISTILLATION
    losses_compare = False  # each is measured against the run's own teacher

    def compose(self) -> None:
        super().compose()
        self.options = self.settings.section("dino", DINOSettings)

    def settle(self, effort: Effort) -> None:
        self.settle_size()
        settle_crops(self.settings, "dino")
        self.settle_network(effort)
        self.settle_hiding()
        self.settle_head()
        self.cut()
        self.settle_batch(effort)
        self.settle_rates()

    def settle_hiding(self) -> None:
        """Whether patches are hidden, and whether the network takes local crops."""
        network, settings = self.network, self.settings
        if settings["dino.ibot"] and not network.hides_patches:
            raise UserError(
                f"{network.named} cannot hide patches, which only vision transformers of selfsup's own can; leave "
                "dino.ibot out."
            )
        settings.settle("dino.ibot", IBOT if network.hides_patches else 0.0, "model")
        require_crops(settings, "dino", network)

    def settle_head(self) -> None:
        """The sizes of the head, and how sharp the teacher is."""
        settings, width, images = self.settings, self.network.width, len(self.images)
        few, many = PROTOTYPES
        wanted = min(max(images // IMAGES_PER_PROTOTYPE, few), many)
        settings.settle("dino.prototypes", power_of_two(wanted), "number of images")
        settings.settle("dino.teacher_temperature", TEMPERATURES[images >= MANY], "number of images")
        settings.settle("dino.hidden", min(4 * width, WIDEST_HEAD), "size")
        settings.settle("dino.bottleneck", min(width, WIDEST_BOTTLENECK), "size")

    @property
    def pooling(self) -> Pooling:
        return self.network.summary

    @property
    def views(self) -> float:  # type: ignore[override]
        """The student's crops, and the teacher's way there of the global ones."""
        return GLOBALS * 4 / 3 + local_share(self.settings, "dino")

    def build(self) -> DINO:
        options, network = self.options, self.network.build()
        if self.settings["dino.ibot"]:
            cast(VisionTransformer, network).give_mask_token(generator(self.settings["train.seed"], "mask token"))
        head = Head(
            network.dimension,
            self.settings["dino.hidden"],
            self.settings["dino.bottleneck"],
            self.settings["dino.prototypes"],
            options.weight_norm,
        ).initialise(generator(self.settings["train.seed"], "head"))
        crops = build_crops(self.settings, "dino", self.seen)
        teaching = Teaching(
            options.targets, self.settings["dino.teacher_temperature"], options.warmup, options.memory, options.frozen
        )
        weights = self.settings["dino.ibot"], options.koleo
        return DINO(Network(network, head), crops, teaching, options.temperature, *weights)

    def encoder(self, objective: Objective) -> AnyBackbone:
        return cast(DINO, objective).teacher.backbone

    def flops_per_record(self) -> float:
        """With the head: the student's way there and back, the teacher's way there."""
        hidden, bottleneck, prototypes, local = (
            self.settings[f"dino.{name}"] for name in ("hidden", "bottleneck", "prototypes", "local_crops")
        )
        matrices = self.network.width * hidden + hidden**2 + bottleneck * (hidden + prototypes)
        rows = 6 * (GLOBALS + local + self._masked_patches) + 2 * (GLOBALS + self._masked_patches)
        return float(super().flops_per_record() + rows * matrices)

    @property
    def _masked_patches(self) -> float:
        """Of a record, in the mean."""
        look = self.network.look
        if not self.settings["dino.ibot"] or not isinstance(look, VisionTransformer):
            return 0.0
        patches = (self.settings["data.size"] // look.config.patch) ** 2
        return float(GLOBALS * MASKED * sum(HIDDEN_SHARE) / 2 * patches)

    def facts(self) -> dict[str, str]:
        options = self.options

        def why(name: str) -> str:
            return f" ({self.settings.origin(f'dino.{name}')})"

        low, high = HIDDEN_SHARE
        masked = (
            f"{low:.0%} to {high:.0%} of the patches of {MASKED:.0%} of the global crops, weight {options.ibot:g}"
            if options.ibot
            else "none"
        )
        first, last = self.settings["dino.teacher_temperature"]
        course = f"{first:g}" if first == last else f"{first:g} to {last:g} in {options.warmup:.0%} of the run"
        chance = math.log(options.prototypes or 1)
        return super().facts() | {
            "crops": told_crops(self.settings, "dino"),
            "hidden": masked,
            "head": f"{options.prototypes:,} prototypes{why('prototypes')} in {options.bottleneck} dimensions, hidden "
            f"width {options.hidden:,}{why('hidden')}; prototypes move after {options.frozen:.0%} of the run",
            "teacher": f"an average over {options.memory:.1%} of the run at first (at most {LONGEST_MEMORY:g} steps), "
            f"ever more of it; {options.targets}; temperature {course}{why('teacher_temperature')}",
            "knowing nothing": f"{chance:.3f} in the terms dino and ibot, and in the teacher's entropy",
        }
