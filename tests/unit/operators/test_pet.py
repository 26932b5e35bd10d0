"""PET projector: the common battery, every factor of the model, time of flight, per-sample maps, subsets."""

from __future__ import annotations

import math

import pytest
import torch

from multirecon.operators import GaussianBlur, ParallelBeam, PETProjector, check_operator

BASE = {"shape": (12, 12), "spacing_mm": (4.0, 4.0), "views": 8, "bins": 17}
TOF = {"tof_bins": 5, "tof_spacing_mm": 20.0, "tof_fwhm_mm": 30.0}


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


CASES = {
    "plain": {},
    "attenuated": {"attenuation": 0.1 * _random(12, 12)},
    "psf": {"psf_fwhm_mm": 6.0},
    "everything": {"attenuation": 0.1 * _random(12, 12), "psf_fwhm_mm": 5.0, "efficiency": _random(8, 17), **TOF},
    "per sample": {"attenuation": 0.1 * _random(2, 3, 12, 12), "efficiency": _random(2, 1, 8, 17), "channels": 3},
    "tof channels": {"attenuation": 0.1 * _random(1, 12, 12), "channels": 2, **TOF},
    "odd rectangular": {"shape": (9, 14), "spacing_mm": (3.0, 2.0), "views": 5, **TOF},
}


@pytest.mark.parametrize("case", CASES)
def test_battery(case: str) -> None:
    arguments = {**BASE, **CASES[case]}
    batched = case != "per sample"
    check_operator(PETProjector(**arguments), tolerance=1e-5, batched=batched)
    check_operator(PETProjector(**arguments).to(torch.float64), tolerance=1e-12, batched=batched)


def test_derivatives_against_finite_differences() -> None:
    A = PETProjector((5, 5), (4.0, 4.0), views=3, bins=7, attenuation=0.1 * _random(5, 5), psf_fwhm_mm=5.0,
                     efficiency=_random(3, 7)).to(torch.float64)  # fmt: skip
    x = _random(2, 1, 5, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(A, x)
    assert torch.autograd.gradgradcheck(A, x)


def test_model_is_the_product_of_its_factors() -> None:
    x, mu, n = _random(2, 1, 12, 12), 0.1 * _random(2, 1, 12, 12, seed=1), _random(8, 17, seed=2)
    A = PETProjector(**BASE, attenuation=mu, efficiency=n, psf_fwhm_mm=6.0)
    P, G = ParallelBeam(**BASE), GaussianBlur((1, 12, 12), (4.0, 4.0), fwhm_mm=6.0)
    torch.testing.assert_close(A(x), n * torch.exp(-P(mu)) * P(G(x)))


def test_attenuation_of_a_slab_in_closed_form() -> None:
    A = PETProjector((10, 10), (10.0, 10.0), views=2, bins=10, attenuation=torch.full((10, 10), 0.096))
    y = A(torch.full((1, 1, 10, 10), 3.0))
    torch.testing.assert_close(y, torch.full_like(y, 3.0 * 10.0 * math.exp(-0.96)))


def test_pet_and_ct_share_their_frame() -> None:
    x = _random(1, 1, 12, 12)
    torch.testing.assert_close(PETProjector(**BASE)(x), ParallelBeam(**BASE)(x), rtol=0, atol=0)


def test_time_of_flight_bins_add_up_to_the_plain_projection() -> None:
    x = _random(1, 1, 12, 12)
    tof = PETProjector(**BASE, tof_bins=11, tof_spacing_mm=20.0, tof_fwhm_mm=30.0)
    torch.testing.assert_close(tof(x).sum(2), PETProjector(**BASE)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_time_of_flight_bin_of_a_point_is_its_position_along_the_ray(start: float) -> None:
    tof = PETProjector((33, 33), (4.0, 4.0), views=8, bins=47, start=start, tof_bins=21, tof_spacing_mm=8.0,
                       tof_fwhm_mm=12.0)  # fmt: skip
    x = torch.zeros(1, 1, 33, 33)
    x[0, 0, 25, 9] = 1.0
    u = torch.tensor([(25 - 16) * 4.0, (9 - 16) * 4.0])
    y = tof(x)[0, 0]  # tof, views, bins
    centre = (torch.arange(21) - 10.0) * 8.0
    mean = (y.sum(2) * centre[:, None]).sum(0) / y.sum((0, 2))
    spread = ((y.sum(2) * (centre[:, None] - mean) ** 2).sum(0) / y.sum((0, 2))).sqrt()
    for view, angle in enumerate(tof.angles):
        along = -math.sin(angle) * u[0] + math.cos(angle) * u[1]
        assert abs(float(mean[view]) - float(along)) < 1.0
        expected = math.sqrt((12.0 / 2.3548) ** 2 + 8.0**2 / 12)  # resolution and bin width, in mm
        assert abs(float(spread[view]) - expected) < 1.0


@pytest.mark.parametrize("change", [{}, {"views": 7}, {"shape": (12, 10)}, {"arc": 2 * math.pi, "views": 8}])
def test_time_of_flight_folds(change: dict) -> None:
    folded = PETProjector(**{**BASE, **change}, **TOF)
    full = PETProjector(**{**BASE, **change}, **TOF, backend="full")
    assert folded.projector.matrix().order >= 4
    x = _random(2, *folded.domain_shape)
    torch.testing.assert_close(folded(x), full(x))
    direct = torch.from_numpy(folded.projector.geometry.matrix().toarray()) @ x.flatten(1).t()
    torch.testing.assert_close(folded(x).flatten(1), direct.t(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_subsets_and_arguments(case: str) -> None:
    A = PETProjector(**{**BASE, **CASES[case]})
    x = _random(2, *A.domain_shape)
    y = A(x)
    torch.testing.assert_close(A.subset(1, 3)(x), y[..., 1::3, :])
    parts = [A.subset(k, 3).adjoint(y[..., k::3, :]) for k in range(3)]
    torch.testing.assert_close(torch.stack(parts).sum(0), A.adjoint(y), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(PETProjector(**A.arguments())(x), y, rtol=0, atol=0)


def test_samples_and_join_of_per_sample_operators() -> None:
    A = PETProjector(**{**BASE, **CASES["per sample"]})
    x = _random(2, *A.domain_shape)
    single = [A.samples(i, i + 1) for i in range(2)]
    for i in range(2):
        torch.testing.assert_close(single[i](x[i : i + 1]), A(x)[i : i + 1])
    torch.testing.assert_close(A.join(single)(x), A(x))
    plain = PETProjector(**BASE, attenuation=0.1 * _random(12, 12))
    assert plain.samples(1, 2) is plain
    other = PETProjector(**BASE, attenuation=0.1 * _random(12, 12, seed=1))
    both = plain.join([plain, other])
    x = _random(2, 1, 12, 12)
    torch.testing.assert_close(both(x), torch.cat([plain(x[:1]), other(x[1:])]))
    torch.testing.assert_close(both.subset(1, 2)(x), both(x)[:, :, 1::2])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"attenuation": torch.zeros(5, 5)}, "attenuation"),
        ({"attenuation": -torch.ones(12, 12)}, "attenuation"),
        ({"efficiency": torch.ones(7, 17)}, "efficiency"),
        ({"efficiency": -1.0}, "efficiency"),
        ({"psf_fwhm_mm": -1.0}, "psf_fwhm_mm"),
        ({"tof_bins": 3}, "tof_bins"),
    ],
)
def test_errors_name_the_argument(change: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        PETProjector(**{**BASE, **change})


@pytest.mark.gpu
def test_cuda_gives_the_same() -> None:
    A, B = PETProjector(**{**BASE, **CASES["everything"]}), PETProjector(**{**BASE, **CASES["everything"]}).cuda()
    x = torch.rand(2, *A.domain_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(B(x.cuda()).cpu(), A(x), rtol=1e-5, atol=1e-5)
    check_operator(B, tolerance=1e-5)
