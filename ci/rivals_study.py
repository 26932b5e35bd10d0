"""Other kinds of generators beside the diffusion priors, from MONAI's networks.

    python ci/rivals_study.py OUT --dataset_dir DATA [--seconds 540] [--only vae,gan,regression] [--page PAGE]
    python ci/rivals_study.py OUT --dataset_dir DATA --results RESULTS --only regression

trains each rival for --seconds of processor time on the cached set that the priors were trained on (once, kept in OUT):

    vae         autoencoder (VarAutoEncoder) of the whole stack of modalities, squared error and divergence
    gan         Wasserstein generator and critic (Generator, Critic) with gradient penalty, three critic steps a step
    regression  U-Net (BasicUNet) from T1, FLAIR and T2* to CT and PET, squared error

and prints

    unconditional  kernel distance (KID) of --count images to the validation slices, by modality, and the energy of
                   their fine detail (HFER) over that of as many validation slices; beside them 20 steps of --bundles
    synthesis      PSNR, SSIM, HFER and KID of PET on the test slices of `pet_from_mr`; beside the regression 20 steps
                   of the first of --bundles on all of them, and the images that `multirecon evaluate` left in --results
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusion_study import METRICS, Case, Study, average
from monai.networks.nets import BasicUNet, Critic, Generator, VarAutoEncoder
from student_study import distance, generated, keep, validation_images
from study_pages import publish, table
from torch import Tensor, nn

from multirecon import tasks
from multirecon.data.augmentation import training_batches
from multirecon.data.cached_slices import CachedSlices
from multirecon.files import save_tensors
from multirecon.metrics import evaluate_image, high_frequency_ratio
from multirecon.reconstruction import DecomposedSampling
from multirecon.space import ImageSpace

MR = ("t1", "flair", "t2star")
BATCH, STEPS, LATENT, SIDE = 8, 20, 128, 128
CRITIC_STEPS, PENALTY = 3, 10.0
TASK, TARGET = "pet_from_mr", "pet_fdg"


class Vae(nn.Module):
    """Autoencoder of a stack of modalities; its loss is the negative evidence bound at a fixed variance of a pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = VarAutoEncoder(2, (channels, SIDE, SIDE), out_channels=channels, latent_size=LATENT,
                                  channels=(32, 64, 96, 128, 160), strides=(2, 2, 2, 2, 2), num_res_units=1,
                                  use_sigmoid=False)  # fmt: skip
        self.variance = 0.02  # assumed, in the range -1 to 1

    def loss(self, image: Tensor) -> Tensor:
        """Return the loss of a batch."""
        recon, mean, log_variance, _ = self.net(image)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return ((recon - image).square().flatten(1).sum(1) / (2 * self.variance) + divergence).mean() / image[0].numel()

    def images(self, count: int) -> Tensor:
        """Return images of latents drawn from the standard normal."""
        return self.net.decode_forward(torch.randn(count, LATENT), False)


class Gan(nn.Module):
    """Wasserstein generator and critic with gradient penalty."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = Generator((LATENT,), (160, 8, 8), channels=(128, 96, 64, 32, channels), strides=(2, 2, 2, 2, 1),
                             num_res_units=0)  # fmt: skip
        self.critic = Critic((channels, SIDE, SIDE), channels=(24, 48, 96, 160), strides=(2, 2, 2, 2),
                             num_res_units=0, norm=None, dropout=None)  # fmt: skip

    def critic_loss(self, image: Tensor) -> Tensor:
        """Return the loss of the critic, whose gradient between real and made images shall have norm one."""
        with torch.no_grad():
            made = self.images(len(image))
        between = image.lerp(made, torch.rand(len(image), 1, 1, 1)).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        return self.critic(made).mean() - self.critic(image).mean() + PENALTY * penalty

    def loss(self, image: Tensor) -> Tensor:
        """Return the loss of the generator."""
        return -self.critic(self.images(len(image))).mean()

    def images(self, count: int) -> Tensor:
        """Return images of latents drawn from the standard normal."""
        return self.net(torch.randn(count, LATENT))


class Regression(nn.Module):
    """From the MR images of a stack to its other images."""

    def __init__(self, space: ImageSpace) -> None:
        super().__init__()
        self.known = [space.channels(name).start for name in MR]
        self.wanted = [k for k in range(space.num_channels) if k not in self.known]
        self.net = BasicUNet(2, len(self.known), len(self.wanted), features=(32, 32, 64, 128, 192, 32))

    def forward(self, image: Tensor) -> Tensor:
        """Return the stack with its other images replaced."""
        out = image.clone()
        out[:, self.wanted] = self.net(image[:, self.known]).to(out.dtype)
        return out

    def loss(self, image: Tensor) -> Tensor:
        """Return the squared error of what is made."""
        return (self(image) - image)[:, self.wanted].square().mean()


def made(name: str, space: ImageSpace) -> nn.Module:
    """Return a rival with fresh weights."""
    torch.manual_seed(0)
    if name == "regression":
        return Regression(space)
    return {"vae": Vae, "gan": Gan}[name](space.num_channels)


def train(name: str, space: ImageSpace, data: CachedSlices, seconds: float) -> tuple[nn.Module, dict[str, Any]]:
    """Train a rival for a time of the processor; returns it and what was done."""
    model = made(name, space)
    batches: Iterator[Tensor] = (2 * b["image"] - 1 for b in training_batches(
        data, BATCH, generator=torch.Generator().manual_seed(0)))  # fmt: skip
    if name == "gan":
        optimizers = [torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.0, 0.9)) for m in (model.critic, model.net)]
    else:
        optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3)]
    begin, losses = time.process_time(), []
    left = 1.0
    while left > 0:
        for _ in range(CRITIC_STEPS if name == "gan" else 0):
            update(optimizers[0], model.critic_loss(next(batches)))
        left = 1 - (time.process_time() - begin) / seconds
        if name != "gan":  # the rate falls to zero over the last third of the time
            optimizers[-1].param_groups[0]["lr"] = 1e-3 * min(1.0, max(0.0, 3 * left))
        with torch.autocast("cpu", torch.bfloat16, enabled=name != "gan"):
            loss = model.loss(next(batches))
        losses.append(update(optimizers[-1], loss))
    done = {"steps": len(losses), "seconds": time.process_time() - begin, "loss": float(np.mean(losses[-50:]))}
    return model.eval(), done | {"parameters": sum(p.numel() for p in model.net.parameters())}


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """Take a step."""
    optimizer.zero_grad(set_to_none=True)
    loss.float().backward()
    optimizer.step()
    return float(loss.detach())


def rival(name: str, space: ImageSpace, out: Path, data: Path, seconds: float) -> tuple[nn.Module, dict[str, Any]]:
    """Return a trained rival, from OUT if it was trained before."""
    weights, notes = out / f"{name}.pt", out / f"{name}.json"
    if not notes.exists():
        model, done = train(name, space, CachedSlices(data / "train", space.names, split="train"), seconds)
        save_tensors(model.state_dict(), weights)
        keep(notes, done)
    model = made(name, space)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval(), json.loads(notes.read_text())


def unconditional(name: str, images: Tensor, study: Study, data: Path) -> dict[str, Any]:
    """Compare images from nothing, in physical units, with the slices of the validation anatomies."""
    space, real = study.prior.space, validation_images(study.prior, data)
    row: dict[str, Any] = {"who": name, "count": len(images), "real": len(real)}
    same = min(len(images), len(real))
    for target in space.names:
        detail = [energy(x[:same, space.channels(target)]) for x in (images, real)]
        row[target] = {"kid": distance(images, real, space, target), "hfer": detail[0] / detail[1]}
    return row


def energy(images: Tensor) -> float:
    """Return the energy of fine detail of a set."""
    reference = torch.zeros_like(images)
    reference[..., ::2, ::2] = 1.0  # any fixed image: only ratios of energies are used
    return float(high_frequency_ratio(images, reference).sum())


def synthesis(method: Callable[[Case], Tensor], cases: list[Case], task: tasks.Task) -> dict[str, Any]:
    """Quality of one method on slices of the task."""
    images = [method(case) for case in cases]
    return scores(images, [truth for _, truth in cases], task)


def scores(images: list[Tensor], truths: list[Tensor], task: tasks.Task) -> dict[str, Any]:
    """Means over slices, and the kernel distance of all."""
    rows = [evaluate_image(x, t, task.space, targets=[TARGET], metrics=METRICS)[TARGET]
            for x, t in zip(images, truths, strict=True)]  # fmt: skip
    kernel = distance(torch.cat(images), torch.cat(truths), task.space, TARGET)
    return average(rows) | {"kid": kernel, "slices": len(rows)}


def recorded(folder: Path, task: tasks.Task) -> dict[str, dict[str, Any]]:
    """Scores of the images that an evaluation kept, by method."""
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for path in sorted((folder / "images" / task.name).glob("*_truth_*.npy")):
        sample, truth = path.name.split("_")[0], torch.from_numpy(np.load(path))[None]
        for other in sorted(path.parent.glob(f"{sample}_*.npy")):
            name = other.name.removeprefix(f"{sample}_").rsplit("_", 1)[0]
            if name != "truth" and not other.name.endswith(".trust.npy"):
                images, truths = found.setdefault(name, ([], []))
                images.append(torch.from_numpy(np.load(other))[None].float())
                truths.append(truth.float())
    return {name: scores(*pair, task) for name, pair in found.items()}


def tables(out: Path) -> dict[str, str]:
    """Return the tables of what is there, by the name of their block in the page."""
    found = {}
    first = [json.loads(p.read_text()) for p in sorted((out / "unconditional").glob("*.json"))]
    if first:
        names = list(first[0])[3:]
        rows = [[r["who"], *(f"{r[n]['kid']:.2f}, {r[n]['hfer']:.2f}" for n in names), f"{r['count']}, {r['real']}"]
                for r in first]  # fmt: skip
        found["rivals unconditional"] = table(["", *(f"{n}: KID, HFER" for n in names), "images, real"], rows)
    second = [json.loads(p.read_text()) for p in sorted((out / TASK).glob("*.json"))]
    if second:
        rows = [[r["who"], f"{r['psnr']:.2f}", f"{r['ssim']:.3f}", f"{r['hfer']:.3f}", f"{r['kid']:.2f}",
                 f"{r['slices']}"] for r in second]  # fmt: skip
        found["rivals synthesis"] = table(["", "PSNR (dB)", "SSIM", "HFER", "KID", "slices"], rows)
    return found


def study_all(given: argparse.Namespace, out: Path) -> None:
    """Compute what is missing in OUT."""
    studies = {name: Study(name) for name in given.bundles.split(",")}
    study = next(iter(studies.values()))
    space, scaling = study.prior.space, study.prior.scaling
    task = tasks.load(TASK)
    samples = task.samples("small")
    for name in given.only.split(","):
        model, _ = rival(name, space, out, given.dataset_dir, given.seconds)
        with torch.no_grad():
            if name != "regression":
                path = out / "unconditional" / f"{name}.json"
                if not path.exists():
                    torch.manual_seed(1)
                    images = scaling.inverse(model.images(given.count).clamp(-1, None))
                    keep(path, unconditional(name, images, study, given.dataset_dir))
                continue
            cases = [task.measure(samples[k]) for k in range(len(samples))]
            ones = cases[4::8]  # the slices of --shard 5/8

            def regress(case: Case, model: nn.Module = model) -> Tensor:
                truth = case[1]  # of which the network sees the MR images
                full = truth.new_zeros(len(truth), space.num_channels, *space.shape)
                for n in task.space.names:
                    full[:, space.channels(n)] = truth[:, task.space.channels(n)]
                full = scaling.inverse(model(scaling(full)))
                return torch.cat([full[:, space.channels(n)] for n in task.space.names], dim=1)

            sampler = DecomposedSampling(study.prior, steps=STEPS, eta=study.eta, **study.shared)

            def reconstruct(case: Case, sampler: DecomposedSampling = sampler) -> Tensor:
                return sampler(case[0], study.network, generator=torch.Generator().manual_seed(1)).as_tensor()

            runs = {"regression": regress, f"{next(iter(studies))}, {STEPS} steps": reconstruct}
            for who, run in runs.items():
                for which in (cases, ones):
                    path = out / TASK / f"{len(which):02d}-{who.replace(' ', '_').replace(',', '')}.json"
                    if not path.exists():
                        keep(path, {"who": who, **synthesis(run, which, task)})
            for folder in filter(None, given.results.split(",")):
                for who, row in recorded(Path(folder), task).items():
                    keep(out / TASK / f"{row['slices']:02d}-{who}.json", {"who": who, **row})
    with torch.no_grad():
        for name, prior in studies.items():
            path = out / "unconditional" / f"{name}.json"
            if not path.exists():
                images = generated(prior.prior, prior.network.network, STEPS, given.count, eta=0.0)
                keep(path, unconditional(f"{name}, {STEPS} steps", images, study, given.dataset_dir))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--bundles", default="any2all_petmrct,wavelet_diffusion_petmrct")
    parser.add_argument("--only", default="vae,gan,regression")
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--results", default="", help="folders of multirecon evaluate, separated by commas")
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    try:
        study_all(given, out)
        publish(tables(out), given.page)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"rivals_study: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    sys.exit(main())
