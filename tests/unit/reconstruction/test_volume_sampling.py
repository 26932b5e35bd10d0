"""Decomposed sampling of a whole volume from oblique PET planes and a CT measured slice by slice."""

from pathlib import Path

import pytest
import torch
from synthetic_head import fine_maps

from multirecon.acquisition import Acquisition, ParallelCT, PETScan3D, StackedCT
from multirecon.acquisition.base import block_mean
from multirecon.bundle import load, load_network
from multirecon.metrics import evaluate_image
from multirecon.networks.slices import SliceNetwork
from multirecon.networks.unet import UNet
from multirecon.priors import DiffusionPrior, HaarDomain, NoiseSchedule, Parametrisation
from multirecon.reconstruction import DecomposedSampling
from multirecon.space import ImageSpace, Modality

BUNDLES = Path(__file__).parents[3] / "bundles"
SHAPE, SPACING = (16, 16, 4), 15.0
SPACE = ImageSpace([Modality("ct", unit="1/cm"), "pet_fdg"], SHAPE, (SPACING,) * 3)


@pytest.fixture(scope="module")
def scan():
    """Measurement and truth of a head whose slices move along the axis."""
    flat = {n: fine_maps(2 * SHAPE[0])[n] for n in ("ct", "pet_fdg", "attenuation")}
    fine = {n: torch.stack([x.roll(k, -1) for k in range(2 * SHAPE[2])], -1) for n, x in flat.items()}
    scans = {
        "ct": StackedCT(ParallelCT(24, photons=1e4)),
        "pet_fdg": PETScan3D(200.0, radius_mm=300.0, max_difference=2, views=16, attenuation="ct"),
    }
    measurement = Acquisition(SPACE, scans, key="t", oversample=2)(fine, ["a"])
    return measurement, torch.cat([block_mean(fine[n], 2) for n in ("ct", "pet_fdg")], dim=1)


def volume_prior():
    torch.manual_seed(0)
    network = UNet(3, 16, out_channels=16, channels=[16, 16], num_res_blocks=1, norm_num_groups=8, num_head_channels=8)
    return HaarDomain(), 8, network


def slice_prior():
    torch.manual_seed(0)
    network = UNet(2, 8, out_channels=8, channels=[16, 16], num_res_blocks=1, norm_num_groups=8, num_head_channels=8)
    return HaarDomain(axes=2), 4, SliceNetwork(network)


def sampler(domain, bands, **options):
    statistics = {"mean": [m for m in (-0.6, -0.8) for _ in range(bands)], "std": [0.4] * (2 * bands)}
    prior = DiffusionPrior(
        SPACE, NoiseSchedule.cosine(1000), domain=domain, clamp=[[-1.0, 1.2], [-1.0, 4.0]],
        parametrisation=Parametrisation("preconditioned", **statistics),
    )  # fmt: skip
    return DecomposedSampling(prior, steps=12, **options)


@pytest.mark.parametrize("make", [volume_prior, slice_prior], ids=["volume", "slices"])
def test_volume_agrees_with_oblique_planes_and_stacked_slices(make, scan):
    measurement, truth = scan
    domain, bands, network = make()
    run = sampler(domain, bands)
    result = run(measurement, network).as_tensor()
    assert torch.equal(result, run(measurement, network).as_tensor())
    assert float(result[:, 1].min()) >= 0
    # the network knows nothing yet: what the volume is comes from the data
    without = {n: run(measurement.restrict([n]), network).as_tensor() for n in ("ct", "pet_fdg")}
    blind = torch.cat([without["pet_fdg"][:, :1], without["ct"][:, 1:]], dim=1)
    with torch.no_grad():
        assert float(measurement.data_fidelity(result)) < 1.4 * float(measurement.data_fidelity(truth))
        assert float(measurement.data_fidelity(blind)) > 20 * float(measurement.data_fidelity(truth))

    def errors(image):
        return ((image - truth).flatten(2).norm(dim=2) / truth.flatten(2).norm(dim=2))[0]

    assert bool((errors(result) < 0.6 * errors(blind)).all())


def test_a_modality_without_data_comes_from_the_prior(scan):
    measurement, _ = scan
    domain, bands, network = volume_prior()
    run = sampler(domain, bands)
    both, one = run(measurement, network).as_tensor(), run(measurement.restrict(["ct"]), network).as_tensor()
    torch.testing.assert_close(one[:, 0], both[:, 0], rtol=0.1, atol=0.02)
    assert not torch.allclose(one[:, 1], both[:, 1], atol=0.1)


@pytest.mark.slow
def test_shipped_weights_against_osem_on_a_volume():
    """One volume of the embedded anatomy, as the bundle itself simulates it."""
    folders = (BUNDLES / name for name in ("wavelet_diffusion_petct3d", "osem_pet"))
    learned, classical = (load(f, device="$torch.device('cpu')") for f in folders)
    evaluator = learned.evaluator
    batch = evaluator.data_loader.collate_fn([learned.dataset[0]])
    measurement, truth = evaluator.prepare_batch(batch, torch.device("cpu"), False)
    prior, osem = (
        evaluate_image(
            w.inferer(measurement, load_network(w)).as_tensor(), truth, measurement.space,
            targets=["pet_fdg"], metrics=("psnr", "ssim", "tvz"),
        )["pet_fdg"]
        for w in (learned, classical)
    )  # fmt: skip
    assert prior["psnr"] > osem["psnr"]
    assert prior["ssim"] > osem["ssim"] + 0.02
    assert abs(prior["tvz"] - 1) < abs(osem["tvz"] - 1)
