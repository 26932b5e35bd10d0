"""The solvers on a CUDA device against the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from unit.solvers.dense import Dense, nonnegative

from multirecon.blocks import Blocks
from multirecon.functionals import JointTotalVariation, NuclearTotalVariation, RelativeDifference
from multirecon.likelihoods import BlockLikelihood, Gaussian, Poisson
from multirecon.operators import BlockDiagonal
from multirecon.solvers import admm, bsrem, data_proximal, fista, least_squares, map_em, osem, pdhg
from multirecon.space import ImageSpace

pytestmark = pytest.mark.gpu
SHAPE, DATA = (1, 4, 5), (1, 6, 5)


def _stack() -> tuple[BlockDiagonal, BlockLikelihood, Blocks]:
    g = torch.Generator().manual_seed(0)
    space = ImageSpace(["t1", "ct", "pet_fdg"], (4, 5), (1.0, 1.0))
    dense = Dense(torch.randn(30, 20, generator=g, dtype=torch.float64), SHAPE, DATA)
    counting = Dense(nonnegative(30, 20), SHAPE, DATA)
    operator = BlockDiagonal(space, {"t1": dense, "pet_fdg": counting})
    likelihood = BlockLikelihood({"t1": Gaussian(0.5), "pet_fdg": Poisson(torch.full((1, *DATA), 2.0).double())})
    truth = 5 * torch.rand(2, 3, 4, 5, generator=g, dtype=torch.float64)
    return operator, likelihood, likelihood.sample(operator(truth), g)


SOLVERS: dict[str, Callable[[BlockDiagonal, BlockLikelihood, Blocks], torch.Tensor]] = {
    "fista": lambda a, f, y: fista(a, f, y, JointTotalVariation(0.5), iterations=30),
    "pdhg": lambda a, f, y: pdhg(a, f, y, NuclearTotalVariation(0.5), nonnegative=True, iterations=40).x,
    "admm": lambda a, f, y: admm(a, f, y, JointTotalVariation(0.5), iterations=10).x,
    "data step": lambda a, f, y: data_proximal(a, f, y, a.adjoint(y) * 0 + 1, rho=1.0),
    "least squares": lambda a, f, y: least_squares(a, y, damping=0.1, implicit=True).x,
    "osem": lambda a, f, y: osem(a.restrict(["pet_fdg"]), f.restrict(["pet_fdg"]), y.select(["pet_fdg"]), subsets=3),
    "map-em": lambda a, f, y: map_em(a["pet_fdg"], f["pet_fdg"], y["pet_fdg"], rho=torch.tensor([1.0, 2.0]).to(
        y["pet_fdg"].device), anchor=torch.ones(2, *SHAPE).to(y["pet_fdg"])),
    "bsrem": lambda a, f, y: bsrem(a["pet_fdg"], f["pet_fdg"], y["pet_fdg"], RelativeDifference(0.1, eps=0.1)),
}  # fmt: skip


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_gives_the_same_image_on_both_devices(name: str) -> None:
    expected = SOLVERS[name](*_stack())
    operator, likelihood, y = _stack()
    got = SOLVERS[name](operator.to("cuda"), likelihood.to("cuda"), y.to("cuda"))
    assert got.is_cuda
    assert torch.allclose(got.cpu(), expected, rtol=1e-6, atol=1e-7)
