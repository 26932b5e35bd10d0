"""Paired multimodal head phantoms: co-registered MR, CT, PET and material maps out of one label map.

Everything is deterministic in (anatomy, seed, config). The finest texture is drawn on the device, so a CPU and a GPU
agree in anatomy, contrast and lesions but not in the last few per cent of texture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from .anatomies import Anatomy, load_anatomy
from .lesions import LesionDraw, draw_lesions
from .materials import attenuation_511, materials_from_hu
from .memberships import soft_memberships, tissue_map
from .morphology import close
from .phantoms_config import PhantomConfig
from .phantoms_record import BACKGROUND, MR_HEADROOM, VOLUMES, Phantom, brain_tissue
from .phantoms_render import MR, Subject, draw_fields, draw_subject, render
from .random_fields import gaussian_smooth, random_field, uniform
from .tissues import REGIONS, label_to_region, mirrored_labels, tissue_index
from .warps import draw_warp, sample_labels, sample_maps, warp_points

__all__ = ["MR_HEADROOM", "VOLUMES", "Phantom", "PhantomConfig", "brain_tissue", "simulate"]


@torch.no_grad()
def simulate(
    anatomy: str | Anatomy, seed: int, *, config: PhantomConfig | None = None, device: torch.device | str = "cpu"
) -> Phantom:
    """Simulate one subject.

    Args:
        anatomy: name of an anatomy, or a loaded one.
        seed: non-negative number of the subject.
        config: knobs; the defaults give a random, mostly healthy subject.
        device: where to compute and where the result lies.

    Returns:
        The phantom: all volumes of ``VOLUMES``, masks and the parameters drawn.

    Raises:
        ValueError: if the anatomy is unknown or the seed negative.

    Example:
        >>> tiny = PhantomConfig(spacing_mm=(3.75, 3.75, 3.75), matrix=64, z_mm=(0.0, 4.0))
        >>> simulate("mni152", 0, config=tiny).volumes["ct"].shape
        torch.Size([64, 64, 2])
    """
    config = config or PhantomConfig()
    head = load_anatomy(anatomy) if isinstance(anatomy, str) else anatomy
    if seed < 0:
        raise ValueError(f"seed: expected a number >= 0, got {seed}")
    device = torch.device(device)
    stream = partial(_stream, head.name, seed)
    generator = stream("shape")

    # where every voxel comes from
    low, high = head.brain_box.double()
    extent = (head.head_box[1] - head.head_box[0] + 1).tolist()
    field_mm = [config.matrix * s for s in config.spacing_mm[:2]]
    warp = draw_warp(
        generator,
        rotation_deg=config.rotation_deg,
        scale=config.scale,
        shear=config.shear,
        elastic_mm=config.elastic_mm,
        elastic_sigma_mm=config.elastic_sigma_mm,
        mirror=config.mirror,
        strength=config.deformation,
        extent_mm=extent[:2],
        field_mm=field_mm,
    )
    centre = torch.cat([head.head_box.double().mean(0)[:2], ((low + high) / 2)[2:]])
    start, count = _levels(head, config, float(1 / warp.matrix[2, 2]))
    origin = [-s * (config.matrix - 1) / 2 for s in config.spacing_mm[:2]] + [start]
    full = (config.matrix, config.matrix, count)
    points = warp_points(
        warp,
        shape=full,
        spacing_mm=config.spacing_mm,
        origin_mm=origin,
        centre=centre,
        generator=generator,
        device=device,
    )
    labels = sample_labels(head.labels.to(device), points)
    crop, margins = _crop(labels)
    labels, points = labels[crop], points[(slice(None), *crop)]

    # derived maps, tissues and lesions
    depth, eye, sinus, ventricle = sample_maps(head.distances.to(device), points, step=2.0)
    span = ((high - low) / 2).float().to(device).view(3, 1, 1, 1)
    a, b, c = head.midplane
    midplane = points[0] - (a + b * points[1] + c * points[2])
    box = points.sub_(low.float().to(device).view(3, 1, 1, 1)).div_(span).sub_(1)
    generator = stream("soft tissue")
    noise = random_field(labels.shape, config.spacing_mm, sigma_mm=3.0, generator=generator, device=device)
    tissue = tissue_map(
        labels,
        box=box,
        midplane_mm=midplane,
        depth_mm=depth,
        eye_mm=eye,
        noise=noise,
        subcutaneous_mm=uniform(6.0, 8.0, generator),
    )
    subject = draw_subject(config, stream("subject"))
    draw = _draw_counts(config, stream("lesions"))
    lesions = draw_lesions(
        draw, tissue=tissue, box=box, ventricle_mm=ventricle, spacing_mm=config.spacing_mm, stream=stream
    )
    fine = stream("fine texture", device)
    fields = draw_fields(labels.shape, config, generator=stream("texture"), fine_generator=fine, device=device)

    def share(*names: str) -> Tensor:
        chosen = torch.isin(tissue, torch.tensor(tissue_index(*names), dtype=tissue.dtype, device=device))
        return gaussian_smooth(chosen.float(), [2.0 / s for s in config.spacing_mm])

    volumes = render(
        soft_memberships(tissue, spacing_mm=config.spacing_mm),
        gyral=1 - share("white_matter", "cerebellar_wm"),
        fluid=share("csf"),
        shape=labels.shape,
        subject=subject,
        fields=fields,
        lesions=lesions,
        box=box,
        sinus_mm=sinus,
        ventricle_mm=ventricle,
        config=config,
    )
    regions = label_to_region().to(device)[tissue.long()]
    white = regions == REGIONS.index("white_matter")
    cortex = regions == REGIONS.index("cortical_gm")
    for name, allowed in (("ms", white), ("infarct", white | cortex)):
        if name in lesions:
            regions[(lesions[name] > 0.5) & allowed] = REGIONS.index("lesion")
    mask = _brain_mask(regions, config.spacing_mm)
    scales = _finish(volumes, regions, mask, config, generator=stream("bias"), fine=fine)

    if warp.mirrored:
        labels = mirrored_labels().to(device)[labels.long()]
    affine = torch.diag(torch.tensor([*config.spacing_mm, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor(origin, dtype=torch.float64)
    return Phantom(
        anatomy=head.name,
        seed=seed,
        volumes={name: pad(volumes[name], margins, value=BACKGROUND.get(name, 0.0)) for name in VOLUMES},
        labels=pad(labels, margins),
        regions=pad(regions, margins),
        masks={name: pad(m, margins) for name, m in {**lesions, "brain": mask}.items()},
        affine=affine,
        parameters=_parameters(subject, draw, warp.mirrored, scales),
    )


def _stream(anatomy: str, seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Generator of one purpose: what one part of the simulation draws does not move the others."""
    digest = hashlib.sha256(f"phantom|{anatomy}|{seed}|{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _levels(head: Anatomy, config: PhantomConfig, scale: float) -> tuple[float, int]:
    """Height of the first slice in mm above the middle of the cerebrum, and the number of slices."""
    low, high = (float(v) for v in head.brain_box[:, 2])
    middle, height = (low + high) / 2, high - low
    if config.z_mm is not None:
        bottom, top = config.z_mm
    elif config.coverage == "useful":
        bottom, top = scale * (low + 0.18 * height - middle), scale * (high - middle) - 2
    elif config.coverage == "brain":
        bottom, top = scale * (low - 0.3 * height - middle), scale * (high - middle) + 4
    else:
        bottom, top = -scale * middle - 4, scale * (head.labels.shape[2] - middle) + 4
    step = config.spacing_mm[2]
    return bottom, max(1, int((top - bottom) / step) + 1)


def _crop(labels: Tensor) -> tuple[tuple[slice, slice, slice], list[int]]:
    """In-plane box of the head with a margin for smoothing, and the padding that undoes it (torch order)."""
    head = labels > 0
    slices, margins = [], []
    for axis in (0, 1):
        line = head.any(dim=2).any(dim=1 - axis).nonzero().flatten()
        n = labels.shape[axis]
        first, last = (max(int(line[0]) - 6, 0), min(int(line[-1]) + 7, n)) if len(line) else (0, n)
        slices.append(slice(first, last))
        margins.append((first, n - last))
    return (slices[0], slices[1], slice(None)), [0, 0, *margins[1], *margins[0]]


def _draw_counts(config: PhantomConfig, generator: torch.Generator) -> LesionDraw:
    def happens(probability: float) -> bool:
        return uniform(0, 1, generator) < probability

    def count(limits: tuple[int, int]) -> int:
        return int(torch.randint(limits[0], limits[1] + 1, (), generator=generator))

    ms, bleeds = count(config.ms_count), count(config.microbleed_count)
    hot, cold = count((0, 2)), count((0, 2))
    pet = happens(config.pet_lesion_probability)
    return LesionDraw(
        ms=ms * happens(config.ms_probability),
        infarct=int(happens(config.infarct_probability)),
        microbleeds=bleeds * happens(config.microbleed_probability),
        pet_hot=max(hot, int(cold == 0)) * pet,
        pet_cold=cold * pet,
    )


def _brain_mask(regions: Tensor, spacing_mm: Sequence[float]) -> Tensor:
    """Brain tissue with the sulci and ventricles between it, as brain extraction programs give."""
    near = gaussian_smooth(brain_tissue(regions).float(), [2.0 / s for s in spacing_mm]) > 0.35
    names = ("air", "bone", "soft_tissue")
    outside = torch.isin(regions, torch.tensor([REGIONS.index(n) for n in names], device=regions.device))
    return close(near, 4) & ~outside


def _finish(
    volumes: dict[str, Tensor],
    regions: Tensor,
    mask: Tensor,
    config: PhantomConfig,
    *,
    generator: torch.Generator,
    fine: torch.Generator,
) -> dict[str, float]:
    """Bias fields, scales, derived maps, noise and skull stripping, in place; returns the MR scales."""
    shape, device = regions.shape, regions.device
    tissue = brain_tissue(regions)
    scales = {}
    for name in MR:
        bias = random_field(shape, config.spacing_mm, sigma_mm=55.0, generator=generator, device=device)
        volume = volumes[name].mul_(torch.exp(uniform(*config.bias, generator) * bias))
        inside = volume[tissue]
        scale = MR_HEADROOM[name] * float(inside.kthvalue(max(1, int(0.9 * len(inside))))[0]) if len(inside) else 1.0
        volume.div_(scale)
        scales[name] = scale
        if config.mr_noise:
            real, imaginary = (config.mr_noise * torch.randn(shape, generator=fine, device=device) for _ in range(2))
            volumes[name] = torch.hypot(volume + real, imaginary)
    volumes["attenuation_511"] = attenuation_511(volumes["ct"])
    volumes["water"], volumes["bone"] = materials_from_hu(volumes["ct"])
    if config.ct_noise_hu:
        volumes["ct"] += config.ct_noise_hu * random_field(
            shape, config.spacing_mm, sigma_mm=0.7, generator=fine, device=device
        )
    if config.pet_fwhm_mm:
        sigma = [config.pet_fwhm_mm / 2.3548 / s for s in config.spacing_mm]
        for name in ("pet_fdg", "pet_amyloid"):
            volumes[name] = gaussian_smooth(volumes[name], sigma)
    if config.skull_stripped:
        for name in volumes:
            volumes[name] = torch.where(mask, volumes[name], BACKGROUND.get(name, 0.0))
    return scales


def _parameters(subject: Subject, draw: LesionDraw, mirrored: bool, scales: dict[str, float]) -> dict[str, float]:
    gm, wm = tissue_index("cortical_gm", "white_matter")
    values = {
        f"{n}_{k}": float(subject.parameters[i, j])
        for n, i in (("gm", gm), ("wm", wm))
        for j, k in enumerate(("t1", "t2"))
    }
    values |= {k: float(v) for k, v in vars(subject.sequences).items()}
    values |= {f"num_{k}": float(v) for k, v in vars(draw).items()}
    values |= {f"scale_{k}": v for k, v in scales.items()}
    return values | {
        "hypometabolism": subject.hypometabolism,
        "amyloid_burden": subject.burden,
        "iodine": subject.iodine,
        "mirrored": float(mirrored),
    }
