"""The measured error of a denoiser: lookup, file, measurement."""

import json
import math

import pytest
import torch

from multirecon.priors import DenoiserError, DiffusionPrior, NoiseSchedule, Parametrisation, measure_denoiser_error
from multirecon.space import ImageSpace

SIGMA, VALUES = [0.1, 1.0, 10.0], [-0.5, 0.5]
TABLE = [[[0.01, 0.04]], [[0.04, 0.16]], [[0.16, 0.64]]]


def test_nodes_borders_and_what_lies_between():
    error = DenoiserError(SIGMA, VALUES, TABLE)
    estimate = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0]).reshape(1, 1, 5)
    torch.testing.assert_close(error(1.0, estimate).flatten(), torch.tensor([0.04, 0.04, 0.08, 0.16, 0.16]))
    torch.testing.assert_close(error(math.sqrt(0.1), estimate)[..., 1].item(), 0.02)  # half-way in the logarithm
    torch.testing.assert_close(error(1e-4, estimate), error(0.1, estimate))
    torch.testing.assert_close(error(1e4, estimate), error(10.0, estimate))


def test_every_channel_has_its_own_row():
    error = DenoiserError(SIGMA, VALUES, torch.tensor(TABLE).repeat(1, 2, 1) * torch.tensor([1.0, 3.0])[:, None])
    found = error(0.3, torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 2, 1))
    assert found.shape == (2, 2, 8, 4)
    same = error(0.3, torch.zeros(1, 2, 3))
    torch.testing.assert_close(same[:, 1], 3 * same[:, 0])


def test_file_comes_back_and_damage_is_refused(tmp_path):
    error, path = DenoiserError(SIGMA, VALUES, TABLE), tmp_path / "error.json"
    error.save(path)
    again = DenoiserError.load(path)
    torch.testing.assert_close(again.variance, error.variance)
    for damage in ("{", json.dumps({"format": 2}), json.dumps({"format": 1, "sigma": [1]}), "[]"):
        path.write_text(damage)
        with pytest.raises(ValueError, match="path: expected a table of denoiser errors"):
            DenoiserError.load(path)
    with pytest.raises(ValueError, match=r"path: .*nowhere"):
        DenoiserError.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("sigma", "values", "variance", "named"),
    [
        ([1.0, 0.1], VALUES, TABLE[:2], "sigma"),
        ([0.0, 1.0], VALUES, TABLE[:2], "sigma"),
        (SIGMA, [0.5], TABLE, "values"),
        (SIGMA, VALUES, TABLE[:2], "variance"),
        (SIGMA[:2], VALUES, [[[0.0, 1.0]], [[1.0, 1.0]]], "variance"),
    ],
)
def test_bad_tables(sigma, values, variance, named):
    with pytest.raises(ValueError, match=named):
        DenoiserError(sigma, values, variance)


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="estimate"):
        DenoiserError(SIGMA, VALUES, TABLE)(0.5, torch.zeros(1, 2, 3))


class Nothing(torch.nn.Module):
    def forward(self, image, timestep=None):
        return torch.zeros_like(image)


def test_error_of_a_known_denoiser(tmp_path):
    """Gaussian images of deviation d and the denoiser that is right for them: s^2 d^2 / (s^2 + d^2)."""
    d, shape = 0.25, (64, 64)
    prior = DiffusionPrior(
        ImageSpace(["t1"], shape, (1.0, 1.0)),
        NoiseSchedule.cosine(),
        parametrisation=Parametrisation("preconditioned", mean=[0.0], std=[d]),
        clamp=None,
    )
    generator = torch.Generator().manual_seed(0)
    images = [0.5 + 0.5 * d * torch.randn(1, *shape, generator=generator) for _ in range(8)]
    error = measure_denoiser_error(prior, Nothing(), images, levels=20, bins=2, path=tmp_path / "error.json")
    for sigma in (0.05, 0.5, 5.0):
        expected = sigma**2 * d**2 / (sigma**2 + d**2)
        found = error(sigma, torch.zeros(1, 1, 1)).item()
        assert abs(found / expected - 1) < 0.12, (sigma, found, expected)
    torch.testing.assert_close(DenoiserError.load(tmp_path / "error.json").sigma, error.sigma, rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="images"):
        measure_denoiser_error(prior, Nothing(), [])
