"""Images out of tissue memberships: every voxel's signal is the mixture of the signals of its tissues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .emission import amyloid_pattern, fdg_pattern
from .memberships import Membership
from .mr_signals import Sequences, draw_sequences, signals
from .phantoms_config import PhantomConfig
from .random_fields import random_field, uniform
from .tissues import TISSUES, tissue_index

__all__ = ["Fields", "Subject", "draw_fields", "draw_subject", "render"]

MR = ("t1", "t2", "flair", "t2star")
_NUCLEI = (
    "caudate",
    "putamen",
    "pallidum",
    "thalamus",
    "ventral_dc",
    "brainstem",
    "hippocampus_amygdala",
    "cerebellar_wm",
)
_STRIATUM = ("caudate", "putamen")
_BRAIN = ("cortical_gm", "white_matter", "cerebellar_gm", "wm_lesion", *_NUCLEI)
_AIR_R2 = 0.03  # 1/ms next to enclosed air
_BLEED_R2 = 0.25  # 1/ms inside a microbleed
# iron-rich structures that no label tells: (|x|, y, z) in the cerebrum's box, radius, 1/ms
_IRON = (
    ((0.07, -0.055, -0.40), 0.045, 0.012),
    ((0.13, -0.03, -0.43), 0.055, 0.016),
    ((0.21, -0.48, -0.78), 0.09, 0.012),
)


@dataclass(frozen=True)
class Subject:
    """What was drawn for one subject.

    Args:
        parameters: ``(len(TISSUES), 7)`` T1, T2, T2* (ms), proton density, HU, FDG, amyloid.
        sequences: settings of the MR sequences.
        hypometabolism: temporo-parietal FDG loss.
        burden: amyloid burden.
        iodine: iodine concentration of blood in g/cm^3.
    """

    parameters: Tensor
    sequences: Sequences
    hypometabolism: float
    burden: float
    iodine: float


@dataclass(frozen=True)
class Fields:
    """Unit-variance random fields and vessel networks in [0, 1], each ``(X, Y, Z)``."""

    relaxation: Tensor
    transverse: Tensor
    nuclei: Tensor
    tracer: Tensor
    ct: Tensor
    veins: Tensor
    spaces: Tensor


def draw_subject(config: PhantomConfig, generator: torch.Generator) -> Subject:
    """Draw tissue parameters, sequence settings and tracer patterns of one subject."""
    rows = torch.tensor(
        [[t.t1, t.t2, t.t2star, t.proton_density, t.hu, t.fdg, t.amyloid] for t in TISSUES.values()],
        dtype=torch.float64,
    )
    spread = torch.tensor([t.spread_hu for t in TISSUES.values()], dtype=torch.float64)
    noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64).clamp(-2.5, 2.5)
    factor = 1 + config.parameter_spread * noise
    factor[:, 3] = 1 + 0.4 * config.parameter_spread * noise[:, 3]  # proton density differs less
    scale = config.parameter_spread / 0.05
    shifted = rows[:, 4] + scale * spread * noise[:, 4] + scale * torch.where(spread > 0, 1.5 * noise[1, 4], 0.0)
    rows = rows * factor
    rows[:, 4] = shifted
    csf = tissue_index("csf")[0]
    sequences = draw_sequences(generator, jitter=config.sequence_jitter, t1_csf=float(rows[csf, 0]))
    positive = uniform(0, 1, generator) < config.amyloid_positive_probability
    burden = uniform(0.45, 1.0, generator) if positive else uniform(0.0, 0.06, generator)
    return Subject(
        rows.float(),
        sequences,
        uniform(*config.hypometabolism, generator),
        burden,
        uniform(*config.contrast_agent, generator),
    )


def draw_fields(
    shape: Sequence[int],
    config: PhantomConfig,
    *,
    generator: torch.Generator,
    fine_generator: torch.Generator,
    device: torch.device | str,
) -> Fields:
    """Draw the texture fields; those finer than 2 mm come from ``fine_generator``, which may live on the device."""

    def field(sigma_mm: float) -> Tensor:
        source = fine_generator if sigma_mm < 2 else generator
        return random_field(shape, config.spacing_mm, sigma_mm=sigma_mm, generator=source, device=device)

    fine = field(0.7)
    relaxation = 0.4 * field(2.2) + 0.75 * field(12.0) + 0.5 * fine
    transverse = 0.45 * relaxation + 0.3 * field(1.5) + 0.65 * field(9.0) + 0.7 * field(0.7)
    return Fields(
        relaxation=relaxation,
        transverse=transverse,
        nuclei=0.8 * field(3.5) + 0.6 * field(7.0),
        tracer=0.9 * field(6.0) + 0.4 * field(2.5),
        ct=field(1.6),
        # where two independent fields vanish together there are curves: thin tubes about 1 mm wide, everywhere
        veins=torch.exp(-(field(4.0).square() + field(4.0).square()) / (2 * 0.10**2)),
        spaces=torch.exp(-(field(3.0).square() + field(3.0).square()) / (2 * 0.10**2)),
    )


def render(
    parts: Iterable[Membership],
    *,
    gyral: Tensor,
    fluid: Tensor,
    shape: Sequence[int],
    subject: Subject,
    fields: Fields,
    lesions: Mapping[str, Tensor],
    box: Tensor,
    sinus_mm: Tensor,
    ventricle_mm: Tensor,
    config: PhantomConfig,
) -> dict[str, Tensor]:
    """Mix the tissues' signals.

    Args:
        parts: memberships of all classes.
        gyral: ``(X, Y, Z)`` share of grey matter and fluid within a few mm: high at the brain's surface.
        fluid: ``(X, Y, Z)`` share of fluid within a few mm.
        shape: ``(X, Y, Z)``.
        subject: drawn parameters.
        fields: texture and vessels.
        lesions: soft lesion masks by kind.
        box: ``(3, X, Y, Z)`` position in the cerebrum's bounding box.
        sinus_mm: ``(X, Y, Z)`` distance to enclosed air in mm.
        ventricle_mm: ``(X, Y, Z)`` distance to the lateral ventricles in mm.
        config: strengths of texture and vessels.

    Returns:
        ``"t1"``, ``"t2"``, ``"flair"``, ``"t2star"`` (arbitrary scale), ``"ct"`` (HU), ``"pet_fdg"``, ``"pet_amyloid"``
        (relative), ``"iodine"`` (g/cm^3), each ``(X, Y, Z)`` float32.
    """
    device = box.device
    names = (*MR, "ct", "pet_fdg", "pet_amyloid", "iodine")
    out = {name: torch.zeros(tuple(shape), device=device) for name in names}
    flat_box = box.reshape(3, -1)
    grey = subject.parameters[tissue_index("cortical_gm")[0]].to(device)
    meninges = {
        name: float(grey[3] * s) for name, s in signals(grey[:1], grey[1:2], grey[2:3], subject.sequences).items()
    }
    for part in parts:
        tissue = list(TISSUES)[part.tissue]
        t1, t2, t2star, density, hu, fdg, amyloid = (float(v) for v in subject.parameters[part.tissue])
        index, share = part.index, part.fraction
        if tissue == "air":
            out["ct"].view(-1)[index] += share * hu
            continue
        row = TISSUES[tissue]
        brain = tissue in _BRAIN

        def at(volume: Tensor, index: Tensor = index) -> Tensor:
            return volume.reshape(-1)[index]

        amount = config.texture * row.texture
        g1, g2 = amount * at(fields.relaxation), amount * at(fields.transverse)
        tracer = 1 + 1.2 * amount * at(fields.tracer)
        values = hu + config.texture * row.hu_texture * at(fields.relaxation if brain or tissue == "csf" else fields.ct)
        if tissue in _NUCLEI:
            iron = 0.07 * config.texture * at(fields.nuclei)
            g1, g2 = g1 + 0.6 * iron, g2 + iron
        long, transverse = t1 * (1 + g1), t2 * (1 + g2)
        r2star = 1 / (t2star * (1 + g2).clamp_min(0.2)) + _AIR_R2 * torch.exp(-at(sinus_mm) / 5)
        fdg_values, amyloid_values = fdg * tracer, amyloid * tracer

        if tissue == "white_matter":  # myelin is densest under the cortex
            myelin = 0.06 - 0.2 * at(gyral)
            long, transverse = long * (1 + 0.3 * myelin), transverse * (1 + myelin)
        if tissue in (
            "cortical_gm",
            "cerebellar_gm",
        ):  # and the deep layers of the cortex hold more than the outer ones
            layer = config.texture * (at(gyral) - 0.72)
            long, transverse = long * (1 + 0.35 * layer), transverse * (1 + 0.2 * layer)
        if tissue == "cortical_gm":
            where = flat_box[:, index]
            fdg_values = fdg_values * fdg_pattern(where, hypometabolism=subject.hypometabolism)
            amyloid_values = amyloid_values * amyloid_pattern(where, burden=subject.burden)
        if tissue in _STRIATUM:
            amyloid_values = amyloid_values * (1 + 0.35 * subject.burden)
        if tissue == "putamen":  # iron grows towards the back
            r2star = r2star * (1 - 0.8 * (flat_box[1, index] - 0.18)).clamp(0.7, 1.4)
        if tissue in ("ventral_dc", "brainstem", "cerebellar_wm"):
            r2star = r2star + _iron(flat_box[:, index])
        if config.vessels and tissue in ("cortical_gm", "white_matter", "csf", "cerebellar_gm"):
            vein = config.vessels * at(fields.veins)
            r2star = r2star + (0.02 if tissue == "white_matter" else 0.05) * vein
            if tissue != "white_matter":
                transverse = transverse * (1 - 0.35 * vein)
            else:
                spaces = config.vessels * at(fields.spaces)
                long, transverse = long * (1 + 0.25 * spaces), transverse * (1 + 0.06 * spaces)
        if brain:
            if "ms" in lesions and tissue in ("white_matter", "wm_lesion"):
                e = at(lesions["ms"])
                long, transverse = long * (1 + 0.2 * e), transverse * (1 + 0.55 * e)
                r2star, values = r2star / (1 + 0.4 * e), values - 5 * e
                fdg_values = fdg_values * (1 - 0.2 * e)
            if "infarct" in lesions and tissue in ("white_matter", "wm_lesion", "cortical_gm"):
                e = at(lesions["infarct"])
                long, transverse = long * (1 + 0.25 * e), transverse * (1 + 0.45 * e) * (1 + 0.25 * e)
                r2star, values = r2star / (1 + 0.36 * e), values - 12 * e
                fdg_values, amyloid_values = fdg_values * (1 - 0.75 * e), amyloid_values * (1 - 0.3 * e)
            if "microbleed" in lesions:
                e = at(lesions["microbleed"])
                r2star, values = r2star + _BLEED_R2 * e, values + 25 * e

        mr = signals(long.clamp_min(50.0), transverse.clamp_min(0.5), 1 / r2star.clamp_min(1e-4), subject.sequences)
        flow = {"artery": (2.2, 0.15, 0.15, 1.4), "vein": (1.0, 0.35, 0.35, 1.0)}.get(tissue, (1.0, 1.0, 1.0, 1.0))
        for name, gain in zip(MR, flow, strict=True):
            signal = (density * gain) * mr[name]
            if tissue == "csf":  # pia, trabeculae and small vessels share the space between the gyri with the fluid
                solid = (
                    0.45 * (1 - at(fluid)) * torch.sigmoid(at(ventricle_mm) - 6) * (1 + 0.4 * at(fields.ct)).clamp(0, 2)
                )
                signal = signal + solid * (meninges[name] - signal)
            out[name].view(-1)[index] += share * signal
        out["ct"].view(-1)[index] += share * values
        out["pet_fdg"].view(-1)[index] += share * fdg_values.clamp_min(0)
        out["pet_amyloid"].view(-1)[index] += share * amyloid_values.clamp_min(0)
        agent = {"artery": 1.0, "vein": 1.0, "choroid_plexus": 0.4, "dura": 0.2, "mucosa": 0.15}.get(tissue, 0.0)
        if agent:
            out["iodine"].view(-1)[index] += share * (agent * subject.iodine)
    for name, gain in (("pet_hot", 1.2), ("pet_cold", -0.5)):
        if name in lesions:
            for tracer_name in ("pet_fdg", "pet_amyloid"):
                out[tracer_name] *= 1 + gain * lesions[name]
    return out


def _iron(box: Tensor) -> Tensor:
    total = torch.zeros(box.shape[1], device=box.device)
    for centre, radius, rate in _IRON:
        distance = (box[0].abs() - centre[0]) ** 2 + (box[1] - centre[1]) ** 2 + (box[2] - centre[2]) ** 2
        total += rate * torch.exp(-distance / radius**2)
    return total
