"""deepinv reconstructors on our measurements, modality by modality."""

import json

import pytest
import torch

from multirecon.acquisition import Acquisition, CartesianMR, CleanImage, ParallelCT, block_mean
from multirecon.interop.guests import GuestReconstructor
from multirecon.space import ImageSpace, Modality

SPACE = ImageSpace(["flair", "t1", Modality("ct", scale=0.2)], (24, 24), (8.0, 8.0))
L2 = {"_target_": "deepinv.optim.L2"}
TV = {
    "_target_": "deepinv.optim.ADMM", "data_fidelity": L2, "stepsize": 300.0, "lambda_reg": 1e-4, "max_iter": 15,
    "prior": {"_target_": "deepinv.optim.TVPrior", "n_it_max": 20},
}  # fmt: skip
ADJOINT = {
    "_target_": "deepinv.models.ArtifactRemoval", "mode": "adjoint",
    "backbone_net": {"_target_": "deepinv.models.MedianFilter", "kernel_size": 1},
}  # fmt: skip


def guest(tmp_path, model, **capability):
    file = tmp_path / "guest.json"
    file.write_text(json.dumps({"model": model, "clean_sigma": 0.01, "capability": capability}))
    return GuestReconstructor(str(file), str(tmp_path))


def truth():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 48), indexing="ij")
    return (0.5 * ((y / 0.8) ** 2 + (x / 0.6) ** 2 < 1) + 0.4 * ((y / 0.3) ** 2 + (x / 0.3) ** 2 < 1))[None, None]


def measure(scans):
    fine = truth()
    return Acquisition(SPACE, scans, key="k", oversample=2)({"flair": fine, "t1": fine, "ct": 0.2 * fine}, ["a"])


def error(result, scale):
    return float((result / scale - block_mean(truth(), 2)).square().mean().sqrt())


def test_one_setting_serves_mr_and_ct(tmp_path):
    measurement = measure({"flair": CartesianMR(2, coils=4), "t1": CleanImage(), "ct": ParallelCT(40, photons=1e5)})
    result = guest(tmp_path, TV)(measurement, None).as_tensor()
    assert error(result[:, :1], 1.0) < 0.06
    assert torch.equal(result[:, 1:2], measurement.y["t1"])
    assert error(result[:, 2:], 0.2) < 0.06


def test_missing_modalities_are_zero_and_refusals_name_the_likelihood(tmp_path):
    measurement = measure({"flair": CartesianMR(2, coils=4)})
    result = guest(tmp_path, ADJOINT)(measurement, None).as_tensor()
    assert result[:, 1:].abs().max() == 0
    with pytest.raises(ValueError, match="expected a likelihood"):
        guest(tmp_path, ADJOINT, likelihoods=["poisson"])(measurement, None)


def test_the_operator_has_norm_one_and_the_image_its_own_unit(tmp_path):
    measurement = measure({"flair": CartesianMR(1, coils=4), "ct": ParallelCT(40)})
    result = guest(tmp_path, ADJOINT)(measurement, None).as_tensor()
    # fully sampled MR: A^H A is the square of the norm times the sum of squares of the maps, here close to one
    assert error(result[:, :1], 1.0) < 0.1
    assert 0.02 < float(result[:, 2:].max()) < 0.2 * 1.5


def test_random_numbers_follow_the_generator(tmp_path):
    score = {"_target_": "deepinv.optim.ScorePrior", "denoiser": {"_target_": "deepinv.models.MedianFilter"}}
    langevin = {"_target_": "deepinv.sampling.ULA", "prior": score, "data_fidelity": {**L2, "sigma": 0.05},
                "step_size": 1e-4, "sigma": 0.05, "max_iter": 20, "thinning": 2}  # fmt: skip
    sampler, measurement = guest(tmp_path, langevin), measure({"flair": CartesianMR(2, coils=4)})
    state = torch.random.get_rng_state()

    def draw(seed):
        return sampler(measurement, None, generator=torch.Generator().manual_seed(seed)).as_tensor()

    one, same, other = draw(1), draw(1), draw(2)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_is_no_reconstructor_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a deepinv reconstructor"):
        guest(tmp_path, {"_target_": "deepinv.models.MedianFilter"})
    with pytest.raises(ValueError, match=r"deepinv.optim.ADMM: TypeError|deepinv.optim.ADMM: "):
        guest(tmp_path, {**TV, "max_iter": None, "params_algo": 3})
