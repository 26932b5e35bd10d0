import json

import pytest
import torch
from deepinv.physics import Denoising

from multirecon.bundle import find
from multirecon.interop.deepinv import OperatorPhysics
from multirecon.interop.deepinv_bundle import as_deepinv
from multirecon.likelihoods import TransmissionPoisson
from multirecon.operators import MaskedFourier, ParallelBeam, birdcage_maps, equispaced_mask
from multirecon.space import ImageSpace


def blob(n):
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, n)] * 2, indexing="ij")
    return ((x**2 + 2 * y**2) < 0.5).float()[None, None]


def test_sense_under_deepinv_equals_the_normal_equations():
    space = ImageSpace(["flair"], (32, 32), (4.0, 4.0))
    physics = OperatorPhysics(MaskedFourier(equispaced_mask((32, 32), 2), birdcage_maps(6, (32, 32))), sigma=0.01)
    model = as_deepinv("sense_mr", space=space)
    y = physics.A(blob(32))
    x = model(y, physics).detach()
    tuned = json.loads((find("sense_mr").configs / "tuning.json").read_text())["settings"]["masked_fourier/gaussian"]
    weight = tuned["weight"] * float(torch.exp(model.network.log_weight.detach()))
    weight = weight * float(physics.operator.norms()) ** 2
    residual = physics.operator.gram(x) + weight * x - physics.A_adjoint(y)
    assert x.shape == (1, 1, 32, 32)
    assert residual.abs().max() < 1e-3
    assert torch.equal(x, model(y, physics))


def test_counts_go_with_their_likelihood():
    space = ImageSpace(["ct"], (32, 32), (4.0, 4.0))
    physics = OperatorPhysics(ParallelBeam((32, 32), (4.0, 4.0), views=60, bins=48))
    likelihood = TransmissionPoisson(1e6)
    counts = likelihood.mean(physics.A(0.2 * blob(32)))
    x = as_deepinv("fbp_ct", space=space, likelihood=likelihood)(counts, physics)
    inside = torch.nn.functional.avg_pool2d(blob(32), 5, 1, 2) > 0.999
    assert float(x[inside].mean()) == pytest.approx(0.2, rel=0.05)


def test_foreign_physics_and_several_modalities_are_refused():
    space = ImageSpace(["flair"], (32, 32), (4.0, 4.0))
    with pytest.raises(ValueError, match="OperatorPhysics"):
        as_deepinv("sense_mr", space=space)(blob(32), Denoising())
    with pytest.raises(ValueError, match="one modality"):
        as_deepinv("sense_mr", space=ImageSpace(["t1", "t2"], (8, 8), (1.0, 1.0)))
