"""Arbitrary lines and slice stacks."""

from __future__ import annotations

import pytest
import torch

from multirecon.operators import FanBeam, LineProjector, ParallelBeam, PETProjector, SliceStack, check_operator


def _lines(n: int = 30) -> dict:
    g = torch.Generator().manual_seed(0)
    return {"starts": 100 * torch.randn(n, 2, generator=g), "ends": 100 * torch.randn(n, 2, generator=g)}


def test_battery() -> None:
    make = lambda: LineProjector((9, 12), (10.0, 8.0), **_lines(), channels=2)  # noqa: E731
    check_operator(make(), tolerance=1e-5)
    check_operator(make().to(torch.float64), tolerance=1e-12)


def test_list_of_a_fan_beams_lines_is_the_fan_beam() -> None:
    fan = FanBeam((12, 12), (2.0, 2.0), views=9, bins=20, source_mm=60.0, detector_mm=40.0)
    points, directions = fan.geometry.rays()
    lines = LineProjector((12, 12), (2.0, 2.0), starts=points, ends=points + 70.0 * directions)
    x = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lines(x), fan(x).flatten(2))
    torch.testing.assert_close(lines.subset(2, 4)(x), lines(x)[..., 2::4])
    torch.testing.assert_close(LineProjector(**lines.arguments())(x), lines(x), rtol=0, atol=0)


def test_direction_along_the_line_does_not_matter() -> None:
    a, b = _lines()["starts"], _lines()["ends"]
    x = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    forth = LineProjector((12, 12), (10.0, 10.0), starts=a, ends=b)(x)
    torch.testing.assert_close(LineProjector((12, 12), (10.0, 10.0), starts=b, ends=a)(x), forth)


def test_line_errors() -> None:
    with pytest.raises(ValueError, match="starts"):
        LineProjector((8, 8), (1.0, 1.0), starts=[[0.0, 0.0]], ends=[[0.0, 0.0]])
    with pytest.raises(ValueError, match="starts"):
        LineProjector((8, 8), (1.0, 1.0), starts=[[0.0, 0.0, 1.0]], ends=[[0.0, 0.0, 2.0]])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_stack_is_a_loop_over_slices(axis: int) -> None:
    flat = ParallelBeam((8, 6), (2.0, 2.0), views=5, bins=12)
    stack = SliceStack(ParallelBeam((8, 6), (2.0, 2.0), views=5, bins=12, channels=6), slices=3, axis=axis)
    x = torch.rand(2, *stack.domain_shape, generator=torch.Generator().manual_seed(0))
    assert stack.domain_shape == (2, *[(3, 8, 6), (8, 3, 6), (8, 6, 3)][axis])
    y = stack(x)
    for c in range(2):
        for d in range(3):
            torch.testing.assert_close(y[:, c, d], flat(x[:, c].select(axis + 1, d)[:, None])[:, 0])
    check_operator(stack, tolerance=1e-5)
    check_operator(SliceStack(stack.operator.to(torch.float64), slices=3, axis=axis), tolerance=1e-12)


def test_slice_stack_of_attenuated_pet_with_subsets() -> None:
    mu = 0.1 * torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    stack = SliceStack(PETProjector((8, 8), (4.0, 4.0), views=6, bins=12, attenuation=mu, channels=4), slices=4)
    x = torch.rand(1, 1, 8, 8, 4, generator=torch.Generator().manual_seed(1))
    one = PETProjector((8, 8), (4.0, 4.0), views=6, bins=12, attenuation=mu[2])
    torch.testing.assert_close(stack(x)[:, :, 2], one(x[..., 2]))
    torch.testing.assert_close(stack.subset(1, 2)(x), stack(x)[..., 1::2, :])
    with pytest.raises(ValueError, match="slices"):
        SliceStack(stack.operator, slices=3)
