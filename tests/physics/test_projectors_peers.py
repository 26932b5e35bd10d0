"""Projectors against other libraries (extra `peers`): the same convention, the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multirecon.operators import FanBeam, GaussianBlur, ParallelBeam
from multirecon.reconstruction.analytic import fbp


def _image(shape: tuple[int, int]) -> torch.Tensor:
    x = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    return GaussianBlur((1, *shape), (1.0, 1.0), fwhm_mm=6.0)(x)


@pytest.mark.peers
@pytest.mark.parametrize("shape", [(64, 64), (65, 65), (48, 70)])
def test_parallel_and_fan_beam_against_astra(shape: tuple[int, int]) -> None:
    import astra

    views, bins = 30, 101
    x = _image(shape)
    # ASTRA's x runs along columns and its y against rows; pixels of 1 cm
    turned = np.ascontiguousarray(x[0, 0].numpy().T[::-1])
    volume = astra.create_vol_geom(shape[1], shape[0])
    parallel = ParallelBeam(shape, (10.0, 10.0), views=views, bins=bins)
    fan = FanBeam(shape, (10.0, 10.0), views=views, bins=bins, source_mm=1500.0, detector_mm=700.0, bin_spacing_mm=16.0)
    scans = [
        (parallel, "linear", astra.create_proj_geom("parallel", 1.0, bins, np.array(parallel.angles))),
        (fan, "line_fanflat", astra.create_proj_geom("fanflat", 1.6, bins, np.array(fan.angles), 150.0, 70.0)),
    ]
    for operator, kind, scan in scans:
        _, theirs = astra.create_sino(turned, astra.create_projector(kind, scan, volume))
        ours = operator(x)[0, 0].numpy()
        # ASTRA has no interpolated fan weights on a CPU: its exact intersections differ on the smooth image by a little
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < (1e-4 if operator is parallel else 5e-3)


@pytest.mark.peers
def test_fbp_against_scikit_image() -> None:
    from skimage.transform import iradon

    A = ParallelBeam((65, 65), (10.0, 10.0), views=90, bins=65)
    u = torch.arange(65.0) - 32
    disc = ((u[:, None] - 5) ** 2 + (u[None] + 8) ** 2 < 15**2).float()
    y = A(disc[None, None])
    ours = fbp(A, y)[0, 0].numpy()
    theirs = iradon(y[0, 0].numpy().T, theta=np.degrees(A.angles), filter_name="ramp", circle=True)
    inner = (u[:, None] ** 2 + u[None] ** 2 < 28**2).numpy()
    candidates = [np.rot90(m, k) for m in (theirs, theirs.T) for k in range(4)]
    error = min(np.linalg.norm((ours - t)[inner]) / np.linalg.norm(ours[inner]) for t in candidates)
    assert error < 0.03
