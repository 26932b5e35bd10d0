"""Signal equations of four MR sequences at 3 T and the spread of their settings between scanners."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .random_fields import uniform

__all__ = ["Sequences", "draw_sequences", "signals"]


@dataclass(frozen=True)
class Sequences:
    """Settings of the four sequences; times in ms, flip angle in degrees."""

    t1_tr: float = 2400.0
    t1_ti: float = 1120.0
    t1_te: float = 3.0
    t2_tr: float = 4800.0
    t2_te: float = 90.0
    flair_tr: float = 9000.0
    flair_ti: float = 2450.0
    flair_te: float = 130.0
    t2star_tr: float = 650.0
    t2star_te: float = 22.0
    t2star_flip: float = 20.0


def draw_sequences(generator: torch.Generator, *, jitter: float, t1_csf: float) -> Sequences:
    """Draw sequence settings around the defaults.

    Args:
        generator: CPU generator.
        jitter: relative half-range of every setting; inversion times get half of it (T1) and a sixth (FLAIR).
        t1_csf: T1 of this subject's CSF in ms; FLAIR's inversion time nulls it.
    """
    base = Sequences()
    drawn = {name: value * (1 + jitter * uniform(-1, 1, generator)) for name, value in vars(base).items()}
    drawn["t1_ti"] = base.t1_ti * (1 + 0.5 * jitter * uniform(-1, 1, generator))
    null = t1_csf * math.log(2 / (1 + math.exp(-drawn["flair_tr"] / t1_csf)))
    drawn["flair_ti"] = null * (1 + jitter / 6 * uniform(-1, 1, generator))
    return Sequences(**drawn)


def signals(t1: Tensor, t2: Tensor, t2star: Tensor, s: Sequences) -> dict[str, Tensor]:
    r"""Return the signals per unit proton density.

    .. math::
        T1:\; & |1 - 2 e^{-TI/T_1} / (1 + e^{-TR/T_1})|\, e^{-TE/T_2^*} \\
        T2:\; & (1 - e^{-TR/T_1})\, e^{-TE/T_2} \\
        FLAIR:\; & |1 - 2 e^{-TI/T_1} + e^{-TR/T_1}|\, e^{-TE/T_2} \\
        T2^*:\; & \sin a (1 - E_1) / (1 - E_1 \cos a)\, e^{-TE/T_2^*},\quad E_1 = e^{-TR/T_1}

    Args:
        t1: ``(n,)`` longitudinal relaxation times in ms.
        t2: ``(n,)`` transverse relaxation times in ms.
        t2star: ``(n,)`` effective transverse relaxation times in ms.
        s: sequence settings.

    Returns:
        ``"t1"``, ``"t2"``, ``"flair"``, ``"t2star"`` -> ``(n,)``.
    """
    r1, r2, r2star = 1 / t1, 1 / t2, 1 / t2star
    flip = math.radians(s.t2star_flip)
    e1 = torch.exp(-s.t2star_tr * r1)
    inverted = 1 - 2 * torch.exp(-s.t1_ti * r1) / (1 + torch.exp(-s.t1_tr * r1))
    nulled = 1 - 2 * torch.exp(-s.flair_ti * r1) + torch.exp(-s.flair_tr * r1)
    return {
        "t1": inverted.abs() * torch.exp(-s.t1_te * r2star),
        "t2": (1 - torch.exp(-s.t2_tr * r1)) * torch.exp(-s.t2_te * r2),
        "flair": nulled.abs() * torch.exp(-s.flair_te * r2),
        "t2star": math.sin(flip) * (1 - e1) / (1 - e1 * math.cos(flip)) * torch.exp(-s.t2star_te * r2star),
    }
