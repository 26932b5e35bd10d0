"""Fan beam: the common battery, its limit as a parallel beam, the fold, subsets."""

from __future__ import annotations

from math import atan2, pi, sin

import pytest
import torch

from multirecon.operators import FanBeam, ParallelBeam, check_operator

BASE = {"shape": (12, 12), "spacing_mm": (2.0, 2.0), "views": 16, "bins": 20, "source_mm": 60.0, "detector_mm": 40.0}


@pytest.mark.parametrize(
    ("change", "order"),
    [
        ({}, 8),
        ({"detector": "curved"}, 8),
        ({"offset_bins": 0.25}, 4),
        ({"views": 7}, 2),
        ({"shape": (9, 14), "spacing_mm": (2.0, 1.5), "channels": 2}, 4),
        ({"arc": 4.0, "start": 0.3, "offset_bins": 0.1}, 1),
    ],
)
def test_battery_and_fold(change: dict, order: int) -> None:
    A = FanBeam(**{**BASE, **change})
    check_operator(A, tolerance=1e-5)
    check_operator(FanBeam(**{**BASE, **change}).to(torch.float64), tolerance=1e-12)
    assert getattr(A.matrix(), "order", 1) == order
    x = torch.rand(2, *A.domain_shape, generator=torch.Generator().manual_seed(0))
    direct = torch.from_numpy(A.geometry.matrix().toarray()) @ x.flatten(2).transpose(1, 2)
    torch.testing.assert_close(A(x).flatten(2), direct.transpose(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("detector", ["flat", "curved"])
def test_far_source_gives_the_parallel_beam(detector: str) -> None:
    x = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    R, D = 1e6, 5e5
    fan = FanBeam((12, 12), (2.0, 2.0), views=10, bins=19, source_mm=R, detector_mm=D, bin_spacing_mm=3.0,
                  detector=detector, offset_bins=0.3)  # fmt: skip
    parallel = ParallelBeam((12, 12), (2.0, 2.0), views=10, bins=19, bin_spacing_mm=2.0, arc=2 * pi, offset_bins=0.3)
    torch.testing.assert_close(fan(x), parallel(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("detector", ["flat", "curved"])
def test_every_ray_is_the_parallel_ray_of_its_angle_and_distance(detector: str) -> None:
    A = FanBeam(**{**BASE, "detector": detector, "offset_bins": 0.25, "start": 0.2})
    x = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    y = A(x)[0, 0]
    reach = BASE["source_mm"] + BASE["detector_mm"]
    for view, b in [(0, 3), (5, 10), (11, 17)]:
        s = (b - 9.5 + 0.25) * A.bin_spacing_mm
        gamma = atan2(s, reach) if detector == "flat" else s / reach
        distance = BASE["source_mm"] * sin(gamma)  # of the ray from the rotation axis, along e at beta - gamma
        ray = ParallelBeam((12, 12), (2.0, 2.0), views=1, bins=1, angles=[A.angles[view] - gamma],
                           offset_bins=distance / 2.0)  # fmt: skip
        assert abs(float(ray(x)) - float(y[view, b])) < 1e-5


def test_subsets_arguments_and_errors() -> None:
    A = FanBeam(**BASE)
    x = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(A.subset(1, 4)(x), A(x)[:, :, 1::4])
    torch.testing.assert_close(FanBeam(**A.arguments())(x), A(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match="detector"):
        FanBeam(**{**BASE, "detector": "round"})
    with pytest.raises(ValueError, match="source_mm"):
        FanBeam(**{**BASE, "source_mm": 10.0})
