"""What recipes decide alike, whatever they train on: learning rates, sizes of the model, how much is whitened over."""

from __future__ import annotations

from selfsup.config import Settings

SPECTRAL_LR = 0.0225  # singular values of Muon's update, times its learning rate: 0.01 at width 128
MATRICES_BY_ADAMW = 1e-3  # usual for small models
STARTED = 0.1  # of the learning rates from scratch, where weights are started from
TOKENS_PER_PARAMETER = 8  # or patches of images
WHITENED = 4096  # texts or images that features are whitened over
FEWEST_WHITENED = 256  # of a run that saw less


def settle_rates(settings: Settings, width: int, adamw_lr: float, started: bool) -> None:
    """Learning rates of the hidden matrices and of all else; weights that were `started` from are to be kept, not
    drowned.

    Muon's update has singular values of 0.2·√width times its learning rate, so wider matrices need a smaller one.
    """
    share, origin = (STARTED, "init") if started else (1.0, "size")
    muon = SPECTRAL_LR / (0.2 * width**0.5)
    rate = muon if settings["optim.matrices"] == "muon" else min(muon, MATRICES_BY_ADAMW)
    settings.settle("optim.lr", float(f"{share * rate:.3g}"), origin)
    settings.settle("optim.adamw_lr", share * adamw_lr, origin if started else "recipe")


def whitened_over(settings: Settings) -> int:
    """Texts or images of the training part that features are whitened over: of a short run about as many as it saw."""
    seen: int = (settings["train.steps"] or WHITENED) * settings["train.batch"]
    return min(WHITENED, max(FEWEST_WHITENED, seen))


def power_of_two(value: float) -> int:
    """The largest power of two up to `value`, at least 1."""
    return 1 << max(0, int(value).bit_length() - 1)
