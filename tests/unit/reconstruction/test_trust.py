"""The trust map against singular value decompositions, and what it must say of clean and missing modalities."""

import pytest
import torch
from unit.solvers.dense import Dense

from multirecon.acquisition import Acquisition, CartesianMR, CleanImage, ParallelCT, PETScan
from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Gaussian, Likelihood
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, Identity
from multirecon.reconstruction.trust import determined_part, trust_map
from multirecon.space import ImageSpace, Modality

SHAPE, SCALE = (6, 5), 0.5
SPACE = ImageSpace([Modality("t1", scale=SCALE), "flair", "ct"], SHAPE, (2.0, 2.0))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_measurement(sigma, rows=18):
    """Half of what would be needed for t1, a clean flair, no ct."""
    operator = Dense(draw(rows, 30), (1, *SHAPE))
    y = Blocks({"t1": draw(2, rows, seed=1), "flair": draw(2, 1, *SHAPE, seed=2)})
    blocks = BlockDiagonal(SPACE, {"t1": operator, "flair": Identity((1, *SHAPE))})
    return Measurement(y, blocks, BlockLikelihood({"t1": Gaussian(sigma), "flair": Gaussian(0.0)})), operator.matrix


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_the_filter_is_that_of_the_singular_values(sigma):
    measurement, matrix = dense_measurement(sigma)
    x = draw(2, 3, *SHAPE, seed=3)
    part = determined_part(measurement, x, contrast=0.3, steps=200, tolerance=1e-12)
    _, s, v = torch.linalg.svd(matrix)
    squares = torch.zeros(30, dtype=s.dtype)
    squares[: len(s)] = (s / sigma) ** 2
    weights = squares / (squares + (0.3 * SCALE) ** -2)
    expected = (weights * (x[:, 0].flatten(1) @ v.T)) @ v
    torch.testing.assert_close(part[:, 0].flatten(1), expected, rtol=0, atol=1e-7)
    assert torch.equal(part[:, 1], x[:, 1])
    assert torch.equal(part[:, 2], torch.zeros_like(x[:, 2]))


def test_without_noise_it_is_the_projection_on_the_row_space():
    measurement, matrix = dense_measurement(0.0)
    x = draw(2, 3, *SHAPE, seed=3)
    part = determined_part(measurement, x, steps=500, tolerance=1e-14)[:, 0].flatten(1)
    projected = x[:, 0].flatten(1) @ (torch.linalg.pinv(matrix) @ matrix).T
    torch.testing.assert_close(part, projected, rtol=0, atol=1e-3)


def test_few_steps_are_cautious():
    measurement, _ = dense_measurement(0.05)
    x = draw(2, 3, *SHAPE, seed=3)
    shares = [float(determined_part(measurement, x, steps=k, tolerance=0.0)[:, 0].norm()) for k in (1, 2, 4, 8, 30)]
    assert shares == sorted(shares)
    assert shares[0] < 0.98 * shares[-1]


def test_map_is_one_for_clean_zero_for_missing_and_falls_with_noise():
    x = draw(2, 3, *SHAPE, seed=3)
    maps = {sigma: trust_map(dense_measurement(sigma)[0], x, window=3) for sigma in (0.01, 1.0, 10.0)}
    for trust in maps.values():
        assert trust.shape == (2, 3, *SHAPE)
        assert torch.equal(trust[:, 1], torch.ones_like(trust[:, 1]))
        assert torch.equal(trust[:, 2], torch.zeros_like(trust[:, 2]))
        assert 0 <= float(trust[:, 0].min()) <= float(trust[:, 0].max()) <= 1
    means = [float(trust[:, 0].mean()) for trust in maps.values()]
    assert 0.9 > means[0] > means[1] + 0.05 > means[2] + 0.1


def test_what_the_operator_cannot_see_is_filled_in():
    measurement, matrix = dense_measurement(0.01)
    basis = torch.linalg.svd(matrix)[2]
    for vector, low, high in ((basis[0], 0.999, 1.0), (basis[-1], 0.0, 1e-6)):
        x = vector.reshape(1, 1, *SHAPE).expand(2, 3, *SHAPE).contiguous()
        trust = trust_map(measurement, x, steps=100, tolerance=1e-10)[:, 0]
        assert low <= float(trust.min())
        assert float(trust.max()) <= high


def test_an_invented_structure_lowers_the_map_where_it_lies():
    """One coil and one line in four of k-space: a spot of a pixel is mostly invented, rows away from it are not."""
    space = ImageSpace(["t1"], (32, 32), (4.0, 4.0))
    smooth = torch.hann_window(32, periodic=False).outer(torch.hann_window(32, periodic=False))[None, None]
    measurement = Acquisition(space, {"t1": CartesianMR(4, coils=1, center_lines=6)}, key="k")({"t1": smooth}, ["a"])
    plain = trust_map(measurement, smooth)[0, 0]
    spot = smooth.clone()
    spot[..., 16, 16] += 20
    invented = trust_map(measurement, spot)[0, 0]
    assert float(plain[12:20, 12:20].min()) > 0.9
    assert float(invented[13:20, 16].max()) < 0.8
    assert float(invented[8, 16]) > 0.9


@pytest.mark.parametrize(
    ("scan", "low", "high"),
    [(CleanImage(0.01), 0.9, 1.0), (ParallelCT(60, photons=1e6), 0.9, 1.0), (ParallelCT(4, photons=1e6), 0.1, 0.8),
     (PETScan(1.0, views=24), 0.0, 0.6)],
)  # fmt: skip
def test_simulated_scans(scan, low, high):
    space = ImageSpace(["ct"], (24, 24), (8.0, 8.0))
    image = 0.3 * torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.pad(image[..., 6:18, 6:18], (6,) * 4)
    maps = {"ct": image, "attenuation": torch.zeros_like(image)}
    measurement = Acquisition(space, {"ct": scan}, key="k")(maps, ["a"])
    inside = trust_map(measurement, image)[0, 0, 6:18, 6:18]
    assert low <= float(inside.mean()) <= high


class Unweighted(Gaussian):
    """Noise that cannot be told from the data alone."""

    def weight(self, y):
        raise NotImplementedError

    def curvature(self, z, y):
        return (self.sigma**-2).expand(z.shape)


def test_without_weights_the_curvature_serves():
    measurement, _ = dense_measurement(0.5)
    x = draw(2, 3, *SHAPE, seed=3)
    likelihood: dict[str, Likelihood] = {"t1": Unweighted(0.5), "flair": Gaussian(0.0)}
    other = Measurement(measurement.y, measurement.operator, BlockLikelihood(likelihood))
    torch.testing.assert_close(determined_part(other, x), determined_part(measurement, x))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"contrast": 0.0}, "contrast"), ({"steps": 0}, "steps"), ({"window": 4}, "window")],
)  # fmt: skip
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        trust_map(dense_measurement(0.5)[0], draw(2, 3, *SHAPE), **options)


def test_foreign_stacks_are_refused():
    measurement, _ = dense_measurement(0.5)
    with pytest.raises(ValueError, match="stack: expected shape"):
        trust_map(measurement, draw(2, 1, *SHAPE))
    with pytest.raises(ValueError, match="2 samples"):
        trust_map(measurement, draw(1, 3, *SHAPE))
