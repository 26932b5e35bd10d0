"""Patch autoencoders: their sizes, one latent for all modalities, fusion of experts, and the evidence bounds."""

import pytest
import torch

from multirecon.networks.evidence import EvidencePass, gaussian_divergence
from multirecon.networks.vae import FUSIONS, MultiBranchVAE, SeparateVAE, fuse_gaussians

TINY = {"patch": 16, "channels": (4, 8), "dense": 16, "latent": 5}
FULL = {"patch": 64, "channels": (48, 96, 192, 192), "dense": 384, "latent": 128}
SHIPPED = {"channels": (24, 48, 96), "dense": 192, "latent": 32}


def count(module):
    return sum(p.numel() for p in module.parameters())


def patches(n=3, k=2, side=16):
    return torch.randn(n, k, side, side, generator=torch.Generator().manual_seed(1))


def test_sizes_of_the_configurations():
    with torch.device("meta"):
        assert count(MultiBranchVAE()) == 2_640_642
        assert count(MultiBranchVAE(**FULL)) == 7_872_546
        joint, separate = MultiBranchVAE(**SHIPPED), SeparateVAE(**{**SHIPPED, "dense": 189})
        assert count(joint) == 1_491_282
        assert abs(count(separate) / count(joint) - 1) < 1e-3


def test_separate_autoencoders_have_the_latent_of_the_joint_one_each():
    assert SeparateVAE(**TINY).latent == 2 * MultiBranchVAE(**TINY).latent


@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_latent_moves_every_modality(fusion):
    """Checklist 1: both images are functions of the same numbers."""
    network = MultiBranchVAE(**TINY, fusion=fusion)
    z = torch.randn(2, 5, requires_grad=True)
    for k in range(2):
        (gradient,) = torch.autograd.grad(network.decode(z)[:, k].sum(), z, retain_graph=True)
        assert (gradient.abs() > 0).all()


def test_separate_latents_move_one_modality_each():
    network = SeparateVAE(**TINY)
    z = torch.randn(2, 10, requires_grad=True)
    for k in range(2):
        (gradient,) = torch.autograd.grad(network.decode(z)[:, k].sum(), z)
        assert (gradient[:, 5 * k : 5 * k + 5].abs() > 0).all()
        assert float(gradient.abs().sum()) == pytest.approx(float(gradient[:, 5 * k : 5 * k + 5].abs().sum()))


@pytest.mark.parametrize("network", [*[MultiBranchVAE(**TINY, fusion=f) for f in FUSIONS], SeparateVAE(**TINY)])
@pytest.mark.filterwarnings("ignore")
def test_scripted_and_exported_networks_agree(network):
    image = patches()
    expected = network(image)
    assert expected.shape == image.shape
    torch.testing.assert_close(torch.jit.script(network)(image), expected)
    torch.testing.assert_close(torch.export.export(network, (image,)).module()(image), expected)


def test_product_of_experts_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    means, log_variances = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    mean, log_variance = fuse_gaussians(means, log_variances, torch.ones(3, dtype=torch.float64), 1.0)
    precision = 1 + (1 / log_variances.exp()).sum(1)
    torch.testing.assert_close(log_variance.exp(), 1 / precision)
    torch.testing.assert_close(mean, (means / log_variances.exp()).sum(1) / precision)


def test_geometric_mean_of_equal_experts_is_the_expert():
    one = torch.full((1, 2, 3), 0.7)
    mean, log_variance = fuse_gaussians(one, torch.zeros(1, 2, 3), torch.full((2,), 0.5), 0.0)
    torch.testing.assert_close(mean, one[:, 0])
    torch.testing.assert_close(log_variance, torch.zeros(1, 3))


@pytest.mark.parametrize("fusion", ["poe", "mmjsd"])
def test_a_missing_modality_does_not_matter_to_the_experts(fusion):
    """Checklist 8: what is in the channel of a missing modality changes nothing; with both it does."""
    network = MultiBranchVAE(**TINY, fusion=fusion)
    image, other = patches(), patches()
    other[:, 1] = 7.0
    first = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(network.encode(image, first)[0], network.encode(other, first)[0])
    assert not torch.allclose(network.encode(image)[0], network.encode(other)[0])
    assert network.encode(image, first)[0].any()
    assert not network.encode(image, torch.zeros(2))[0].any()


def test_without_a_modality_the_joint_head_answers_with_the_prior():
    mean, log_variance = MultiBranchVAE(**TINY).encode(patches(), torch.tensor([1.0, 0.0]))
    assert not mean.any()
    assert not log_variance.any()


def test_divergence_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(6, 4, generator=generator) for _ in range(4))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(a, (0.5 * b).exp()), normal(c, (0.5 * d).exp())).sum(1)
    torch.testing.assert_close(gaussian_divergence(a, b, c, d), expected)


@pytest.mark.parametrize(("fusion", "draws"), [("joint", 1), ("poe", 3), ("mmjsd", 2)])
def test_evidence_of_every_fusion(fusion, draws):
    network = MultiBranchVAE(**TINY, fusion=fusion)
    image = patches(4)
    reconstructions, divergence = EvidencePass(network)(image, torch.zeros(draws, 4, 5))
    assert reconstructions.shape == (draws, 4, 2, 16, 16)
    assert (divergence > 0).all()
    means, log_variances = network.experts(image)
    if fusion == "mmjsd":
        # without noise the draws are the experts' means, and the divergence is between what the normals say
        torch.testing.assert_close(reconstructions[1], network.decode(means[:, 1]))
        mean, log_variance = network.encode(image)
        zero = torch.zeros_like(mean)
        parts = [gaussian_divergence(means[:, k], log_variances[:, k], mean, log_variance) for k in range(2)]
        expected = (sum(parts) + gaussian_divergence(zero, zero, mean, log_variance)) / 3
        torch.testing.assert_close(divergence, expected)
    else:
        torch.testing.assert_close(reconstructions[0], network.decode(network.encode(image)[0]))
    with pytest.raises(ValueError, match=f"at least {draws} draws"):
        EvidencePass(network)(image, torch.zeros(draws - 1, 4, 5))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"patch": 18}, "patch that can be halved"), ({"fusion": "sum"}, "fusion: expected one of"),
     ({"modalities": 0}, "expected >= 1 modality")],
)  # fmt: skip
def test_wrong_arguments_are_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        MultiBranchVAE(**{**TINY, **wrong})
