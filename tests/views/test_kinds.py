"""The parameters of the papers, as torchvision-based recipes write them down."""

from __future__ import annotations

import pytest

from selfsup.views import View, dino_global, dino_local, dino_second, mae_view, simclr_view


def colours(view: View) -> tuple[float, float, float, float]:
    return view.brightness, view.contrast, view.saturation, view.hue


def test_simclr() -> None:
    """Appendix A, at strength 1; on small images, as on CIFAR-10 (B.9), at half of it and without blur."""
    large = simclr_view(224)
    assert (large.scale, large.ratio, large.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert (large.jitter, colours(large)) == (0.8, (0.8, 0.8, 0.8, 0.2))
    assert (large.grey, large.blur, large.sigma, large.solarize) == (0.2, 0.5, (0.1, 2.0), 0)
    small = simclr_view(32)
    assert colours(small) == (0.4, 0.4, 0.4, 0.1)
    assert (small.jitter, small.grey, small.blur) == (0.8, 0.2, 0)


def test_dino() -> None:
    views = dino_global(224), dino_second(224), dino_local(96)
    assert all((view.jitter, colours(view), view.grey) == (0.8, (0.4, 0.4, 0.2, 0.1), 0.2) for view in views)
    assert [(view.blur, view.solarize) for view in views] == [(1.0, 0), (0.1, 0.2), (0.5, 0)]
    assert views[0].scale == views[1].scale == (views[2].scale[1], 1.0)
    assert dino_local(16).blur == dino_global(32).blur == 0
    assert dino_global(224, (0.4, 1.0)).scale == (0.4, 1.0)


def test_mae() -> None:
    assert mae_view(224) == View(224, (0.2, 1.0))
    nothing = mae_view(32)
    assert (nothing.jitter, nothing.grey, nothing.blur, nothing.solarize) == (0, 0, 0, 0)


@pytest.mark.parametrize("make", [simclr_view, dino_global, dino_second, dino_local, mae_view])
def test_a_view_has_the_size_that_is_asked_for(make: type) -> None:
    assert make(48).size == 48
