"""Projectors against closed forms: analytic sinograms of ellipses, registration, absolute values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from multirecon.operators import ConeBeam, FanBeam, LinearOperator, ParallelBeam, PETProjector
from multirecon.reconstruction.analytic import fbp

FIELD_MM = 240.0


@dataclass(frozen=True)
class Ellipse:
    """Value (1/cm), centre, semi-axes (mm) and angle of the first semi-axis against axis 0 (radians)."""

    value: float
    centre: tuple[float, float]
    axes: tuple[float, float]
    angle: float = 0.0

    def inside(self, u0: Tensor, u1: Tensor) -> Tensor:
        c, s = math.cos(self.angle), math.sin(self.angle)
        d0, d1 = u0 - self.centre[0], u1 - self.centre[1]
        return ((c * d0 + s * d1) / self.axes[0]) ** 2 + ((-s * d0 + c * d1) / self.axes[1]) ** 2 <= 1

    def chord(self, angle: Tensor, distance: Tensor) -> Tensor:
        """Line integrals in cm * value along the lines of an angle and a signed distance (mm)."""
        a, b = self.axes
        half2 = (a * torch.cos(angle - self.angle)) ** 2 + (b * torch.sin(angle - self.angle)) ** 2
        s = distance - (self.centre[0] * torch.cos(angle) + self.centre[1] * torch.sin(angle))
        return self.value * 2 * a * b * torch.sqrt((half2 - s * s).clamp_min(0)) / half2 / 10.0

    def sinogram(self, angles: Tensor, positions: Tensor, width: float) -> Tensor:
        """Line integrals in cm * value, averaged over bins of the given width (mm)."""
        a, b = self.axes
        half = torch.sqrt((a * torch.cos(angles - self.angle)) ** 2 + (b * torch.sin(angles - self.angle)) ** 2)
        s = positions[None] - (self.centre[0] * torch.cos(angles) + self.centre[1] * torch.sin(angles))[:, None]

        def primitive(t: Tensor) -> Tensor:  # of the chord 2 a b / half * sqrt(1 - (t / half)^2)
            q = (t / half[:, None]).clamp(-1, 1)
            return a * b * (q * torch.sqrt(1 - q * q) + torch.asin(q))

        return self.value * (primitive(s + width / 2) - primitive(s - width / 2)) / width / 10.0


DISCS = (Ellipse(0.2, (20.0, -33.0), (60.0, 60.0)), Ellipse(0.1, (-40.0, 30.0), (25.0, 25.0)))
ELLIPSES = (Ellipse(0.2, (15.0, -10.0), (80.0, 50.0), 0.4), Ellipse(-0.05, (30.0, 10.0), (20.0, 30.0), -0.7))


def _axes(shape: tuple[int, int], spacing: tuple[float, float], fine: int = 1) -> tuple[Tensor, Tensor]:
    u = [(torch.arange(n * fine, dtype=torch.float64) - (n * fine - 1) / 2) * d / fine
         for n, d in zip(shape, spacing, strict=True)]  # fmt: skip
    return u[0][:, None], u[1][None]


def _image(shapes: tuple[Ellipse, ...], shape: tuple[int, int], spacing: tuple[float, float], fine: int = 12) -> Tensor:
    """Pixel means by supersampling, in double precision."""
    u0, u1 = _axes(shape, spacing, fine)
    image = torch.zeros(shape, dtype=torch.float64)
    for e in shapes:
        image += e.value * e.inside(u0, u1).double().reshape(shape[0], fine, shape[1], fine).mean((1, 3))
    return image


def _sinogram(shapes: tuple[Ellipse, ...], operator: ParallelBeam) -> Tensor:
    angles = torch.tensor(operator.angles, dtype=torch.float64)
    positions = torch.from_numpy(operator.geometry.positions)
    return torch.stack([e.sinogram(angles, positions, operator.bin_spacing_mm) for e in shapes]).sum(0)


def _square(n: int, views: int, **more: float) -> ParallelBeam:
    return ParallelBeam((n, n), (FIELD_MM / n,) * 2, views=views, bins=math.ceil(1.42 * n), **more)


def _error(operator: LinearOperator, image: Tensor, truth: Tensor) -> float:
    y = operator(image.float()[None, None])[0, 0].double()
    return float((y - truth).norm() / truth.norm())


@pytest.mark.parametrize("shapes", [DISCS, ELLIPSES], ids=["discs", "ellipses"])
@pytest.mark.parametrize(
    ("n", "views", "bound"), [(64, 90, 8.5e-3), (127, 180, 4.3e-3), (128, 180, 4.3e-3), (256, 360, 2e-3)]
)
def test_analytic_sinograms_at_even_and_odd_widths(n: int, views: int, bound: float, shapes: tuple) -> None:
    A = _square(n, views)
    assert _error(A, _image(shapes, (n, n), (FIELD_MM / n,) * 2), _sinogram(shapes, A)) <= bound


@pytest.mark.parametrize(
    ("shape", "spacing", "views", "more"),
    [
        ((127, 128), (1.9, 1.9), 181, {}),
        ((96, 151), (2.5, 1.6), 90, {"bin_spacing_mm": 1.8}),
        ((128, 128), (1.875, 1.875), 90, {"offset_bins": 0.25}),
        ((129, 128), (1.875, 1.875), 91, {"offset_bins": -7.5, "arc": 2 * math.pi}),
        ((128, 128), (1.875, 1.875), 37, {"start": 0.123}),
    ],
)
def test_analytic_sinograms_of_unusual_geometries(shape: tuple, spacing: tuple, views: int, more: dict) -> None:
    A = ParallelBeam(shape, spacing, views=views, bins=200, **more)
    assert _error(A, _image(ELLIPSES, shape, spacing), _sinogram(ELLIPSES, A)) <= 2.3e-3 * max(spacing)


@pytest.mark.parametrize("detector", ["flat", "curved"])
def test_analytic_fan_beam(detector: str) -> None:
    n, R, D = 128, 400.0, 300.0
    A = FanBeam((n, n), (FIELD_MM / n,) * 2, views=60, bins=220, source_mm=R, detector_mm=D, detector=detector,
                offset_bins=0.25)  # fmt: skip
    s = torch.from_numpy(A.geometry.positions)
    gamma = torch.atan(s / (R + D)) if detector == "flat" else s / (R + D)
    truth = torch.zeros(60, 220, dtype=torch.float64)
    for k in range(-4, 5):  # nine rays across every bin
        g = gamma + k / 9 * (gamma[1:] - gamma[:-1]).mean()
        angle = torch.tensor(A.angles, dtype=torch.float64)[:, None] - g
        truth += sum(e.chord(angle, R * torch.sin(g)) for e in ELLIPSES) / 9
    assert _error(A, _image(ELLIPSES, (n, n), (FIELD_MM / n,) * 2), truth) <= 5e-3


@pytest.mark.parametrize("n", [64, 65, 127, 128])
def test_no_half_pixel_shift_between_pet_and_ct(n: int) -> None:
    """The centre of mass of every view is the projection of the image's centre of mass, for both modalities."""
    spacing = FIELD_MM / n
    image = _image(DISCS[:1], (n, n), (spacing, spacing)).float()[None, None]
    u0, u1 = _axes((n, n), (spacing, spacing))
    mass = image[0, 0].double()
    centre = (float((mass * u0).sum() / mass.sum()), float((mass * u1).sum() / mass.sum()))
    assert math.dist(centre, DISCS[0].centre) < 0.01
    ct = _square(n, 45)
    pet = PETProjector((n, n), (spacing, spacing), views=45, bins=ct.geometry.bins)
    s = torch.from_numpy(ct.geometry.positions)
    angles = torch.tensor(ct.angles, dtype=torch.float64)
    expected = centre[0] * torch.cos(angles) + centre[1] * torch.sin(angles)
    for operator in (ct, pet):
        y = operator(image)[0, 0].double()
        torch.testing.assert_close((y * s).sum(1) / y.sum(1), expected, rtol=0, atol=0.02 * spacing)


@pytest.mark.parametrize(("n", "views", "arc"), [(127, 180, math.pi), (128, 180, math.pi), (128, 361, 2 * math.pi)])
def test_fbp_recovers_attenuation_in_absolute_units(n: int, views: int, arc: float) -> None:
    disc = DISCS[0]
    A = _square(n, views, arc=arc)
    x = fbp(A, _sinogram((disc,), A).float()[None, None])[0, 0].double()
    inner = Ellipse(1.0, disc.centre, (50.0, 50.0)).inside(*_axes((n, n), (FIELD_MM / n,) * 2))
    assert abs(float(x[inner].mean()) / disc.value - 1) < 1e-4
    assert float((x[inner] / disc.value - 1).abs().max()) < 0.01
    smooth = fbp(A, _sinogram((disc,), A).float()[None, None], window="hann", cutoff=0.8)[0, 0].double()
    assert float((smooth[inner] / disc.value - 1).abs().max()) < 1e-3
    hounsfield = 1000 * (x[inner].mean() / 0.19 - 1)  # disc of 0.2 1/cm in water of 0.19 1/cm
    assert abs(float(hounsfield) - 1000 * (0.2 / 0.19 - 1)) < 1.0


def test_activity_recovered_after_attenuation_correction() -> None:
    """PET: divide by the attenuation factors and the calibration, then FBP gives kBq/mL."""
    n, spacing, activity, calibration = 128, FIELD_MM / 128, 12.5, 0.8
    body, hot = Ellipse(0.096, (0.0, 0.0), (90.0, 70.0)), Ellipse(activity, (20.0, -15.0), (30.0, 30.0))
    mu = _image((body,), (n, n), (spacing, spacing)).float()
    pet = PETProjector((n, n), (spacing, spacing), views=180, bins=182, attenuation=mu, efficiency=calibration)
    ct = ParallelBeam((n, n), (spacing, spacing), views=180, bins=182)
    counts = pet(_image((hot,), (n, n), (spacing, spacing)).float()[None, None])
    # the factors are those of the body in closed form
    analytic = torch.exp(-_sinogram((body,), ct)) * calibration
    ratio = pet.weight[0, 0].double() / analytic
    assert float((ratio - 1).square().mean().sqrt()) < 3e-3
    assert float((ratio - 1).abs().max()) < 0.035  # at rays that touch the edge of the body
    x = fbp(ct, counts / pet.weight)[0, 0]
    inner = Ellipse(1.0, hot.centre, (24.0, 24.0)).inside(*_axes((n, n), (spacing, spacing)))
    assert float(x[inner].mean()) == pytest.approx(activity, rel=0.01)


@pytest.mark.parametrize("n", [48, 49])
def test_analytic_cone_beam_of_a_ball(n: int) -> None:
    """Chords of an off-centre ball along rays from the turning source, nine rays a detector cell."""
    centre, radius, value, R, D, fine = torch.tensor([10.0, -14.0, 8.0]), 25.0, 0.2, 300.0, 200.0, 4
    spacing = 96.0 / n
    A = ConeBeam((n,) * 3, (spacing,) * 3, views=9, rows=70, bins=70, source_mm=R, detector_mm=D)
    u = (torch.arange(n * fine) - (n * fine - 1) / 2) * spacing / fine
    near = (u[:, None, None] - centre[0]) ** 2 + (u[None, :, None] - centre[1]) ** 2 + (u - centre[2]) ** 2 <= radius**2
    image = value * near.float().reshape(n, fine, n, fine, n, fine).mean((1, 3, 5))
    pitch = A.arguments()["bin_spacing_mm"]
    s = (torch.arange(70 * 3) - 104.5) * pitch / 3  # three by three rays a cell
    truth = torch.zeros(9, 210, 210)
    for view, beta in enumerate(A.angles):
        e, v = torch.tensor([math.cos(beta), math.sin(beta), 0.0]), torch.tensor([-math.sin(beta), math.cos(beta), 0.0])
        step = (R + D) * v + s[None, :, None] * e + s[:, None, None] * torch.tensor([0.0, 0.0, 1.0])
        step = step / step.norm(dim=-1, keepdim=True)
        offset = centre + R * v  # from the source to the centre of the ball
        along = (step * offset).sum(-1)
        truth[view] = value * 2 * (radius**2 - (offset @ offset - along**2)).clamp_min(0).sqrt() / 10
    truth = truth.reshape(9, 70, 3, 70, 3).mean((2, 4))
    assert float((A(image[None, None])[0, 0] - truth).norm() / truth.norm()) < 0.02  # a quarter of a voxel gives 0.035


def test_fbp_refuses_a_scan_it_cannot_invert() -> None:
    A = ParallelBeam((16, 16), (1.0, 1.0), views=12, bins=24, arc=2.0)
    with pytest.raises(ValueError, match="operator"):
        fbp(A, torch.zeros(1, 1, 12, 24))
