"""What recipes decide alike, whatever they train on: learning rates, sizes of the model, how much is whitened over."""

from __future__ import annotations

from selfsup.config import Settings
from selfsup.objectives.starting import trained_by_muon

SPECTRAL_LR = 0.0225  # singular values of Muon's update, times its learning rate: 0.01 at width 128
MATRICES_BY_ADAMW = 1e-3  # usual for small models
STARTED = 0.1  # of the learning rates from scratch, where weights that Muon made are started from
# Of weights that AdamW made, at the width of the smallest GPT-3, whose rate falls with the width (Brown et al. 2020,
# table 2.1: 6e-4 for batches of half a million tokens, and as the root of the batch, so 4e-5 for 2,000).
GOING_ON_LR, GOING_ON_WIDTH = 1e-4, 768
GOING_ON_DECAY = 0.01  # as BERT's and its kin's
LAYER_DECAY = 0.75  # between the 0.65 of BEiT (Bao et al. 2022) and MAE and the 0.8 of larger or longer fine-tuning
TOKENS_PER_PARAMETER = 8  # or patches of images
WHITENED = 4096  # texts or images that features are whitened over
FEWEST_WHITENED = 256  # of a run that saw less


def settle_rates(settings: Settings, width: int, adamw_lr: float, started: bool) -> None:
    """Learning rates of the hidden matrices and of all else; weights that were `started` from are to be kept, not
    drowned.

    Muon's update has singular values of 0.2·√width times its learning rate, so wider matrices need a smaller one. It
    goes on only with what it made itself, see `settle_going_on`.
    """
    if started and not trained_by_muon(settings["model.init"]):
        settle_going_on(settings, width)
    share, origin = (STARTED, "init") if started else (1.0, "size")
    muon = SPECTRAL_LR / (0.2 * width**0.5)
    rate = muon if settings["optim.matrices"] == "muon" else min(muon, MATRICES_BY_ADAMW)
    settings.settle("optim.lr", float(f"{share * rate:.3g}"), origin)
    settings.settle("optim.adamw_lr", share * adamw_lr, origin if started else "recipe")


def unresolved(settings: Settings) -> bool:
    """Whether a run is only being planned: a resolved configuration has all of these."""
    return any(settings[f"optim.{key}"] is None for key in ("lr", "adamw_lr", "warmup", "weight_decay"))


def settle_going_on(settings: Settings, width: int) -> None:
    """Optimizer and rates for weights that AdamW made, which it trains on: Muon gains nothing there (Liu et al. 2025,
    "Muon is Scalable for LLM Training", section 3.5).

    The rate is warmed up anew and then decays. A lower peak forgets less and learns less, a higher one the reverse,
    and how long it is warmed up hardly matters (Gupta et al. 2023, "Continual Pre-Training of Large Language Models:
    How to (re)warm your model?", section 4; Ibrahim et al. 2024, "Simple and Scalable Strategies to Continually
    Pre-train Large Language Models", section 6). They go on to their own peak with hundreds of billions of tokens;
    with the few of a folder of one's own it is lower here.
    """
    if not unresolved(settings):
        return
    if settings.origin("optim.matrices") == "default":
        settings.change("optim.matrices", "adamw", "init")
    if settings["optim.matrices"] == "adamw":
        rate = float(f"{GOING_ON_LR * GOING_ON_WIDTH / max(width, GOING_ON_WIDTH / 2):.2g}")
        settings.settle("optim.lr", rate, "init")
        settings.settle("optim.adamw_lr", rate, "init")
        settings.settle("optim.weight_decay", GOING_ON_DECAY, "init")


def settle_layer_decay(settings: Settings, started: bool) -> None:
    """How much lower the rates of each layer of a started vision transformer are than those of the one above it."""
    if started and settings.origin("optim.layer_decay") == "default" and unresolved(settings):
        settings.change("optim.layer_decay", LAYER_DECAY, "init")


def whitened_over(settings: Settings) -> int:
    """Texts or images of the training part that features are whitened over: of a short run about as many as it saw."""
    seen: int = (settings["train.steps"] or WHITENED) * settings["train.batch"]
    return min(WHITENED, max(FEWEST_WHITENED, seen))


def power_of_two(value: float) -> int:
    """The largest power of two up to `value`, at least 1."""
    return 1 << max(0, int(value).bit_length() - 1)
