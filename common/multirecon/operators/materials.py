"""Mass attenuation of the basis materials of spectral CT, and X-ray spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

__all__ = ["MATERIALS", "energy_bins", "mass_attenuation", "tube_spectrum"]

# Total attenuation with coherent scattering in cm^2/g at the listed energies in keV, as tabulated by hubbell1995
# (water, ICRU-44 cortical bone, aluminium, iodine). An energy listed twice is an absorption edge: value below, then
# above. The entries were written down from the published table and hold to about one unit in the last digit.
_WATER = {10: 5.329, 15: 1.673, 20: 0.8096, 30: 0.3756, 40: 0.2683, 50: 0.2269, 60: 0.2059, 80: 0.1837, 100: 0.1707,
          150: 0.1505, 200: 0.1370}  # fmt: skip
_BONE = {10: 28.51, 15: 9.032, 20: 4.001, 30: 1.331, 40: 0.6655, 50: 0.4242, 60: 0.3148, 80: 0.2229, 100: 0.1855,
         150: 0.1480, 200: 0.1309}  # fmt: skip
_ALUMINIUM = {10: 26.23, 15: 7.955, 20: 3.441, 30: 1.128, 40: 0.5685, 50: 0.3681, 60: 0.2778, 80: 0.2018, 100: 0.1704,
              150: 0.1378, 200: 0.1223}  # fmt: skip
_IODINE_BELOW = {10: 162.6, 15: 55.12, 20: 25.43, 30: 8.561, 33.1694: 6.553}
_IODINE_ABOVE = {33.1694: 35.82, 40: 22.10, 50: 12.32, 60: 7.579, 80: 3.510, 100: 1.942, 150: 0.6978, 200: 0.3663}

MATERIALS: dict[str, tuple[Mapping[int, float] | Mapping[float, float], ...]] = {
    "water": (_WATER,),
    "bone": (_BONE,),
    "aluminium": (_ALUMINIUM,),
    "iodine": (_IODINE_BELOW, _IODINE_ABOVE),
}
"""Name -> table (one for each range between absorption edges) of mass attenuation, keV -> cm^2/g."""

_ALUMINIUM_DENSITY = 2.699  # g/cm^3


def mass_attenuation(materials: Sequence[str], energies_kev: Sequence[float] | Tensor) -> Tensor:
    """Return the mass attenuation of materials at photon energies.

    A cubic spline in the logarithms of energy and attenuation runs between the tabulated energies, within each range
    between absorption edges; an edge itself counts as above. Interpolation adds less than about 1 % from 20 to 150 keV.

    Args:
        materials: names out of ``MATERIALS``: water, bone (cortical, ICRU-44), aluminium, iodine.
        energies_kev: photon energies in keV, from 10 to 200.

    Returns:
        Mass attenuation in cm^2/g, float32 of shape ``(materials, energies)``.

    Raises:
        ValueError: on an unknown material or an energy outside 10 to 200 keV.

    References:
        hubbell1995

    Example:
        >>> mass_attenuation(["water", "iodine"], [60.0])
        tensor([[0.2059],
                [7.5790]])
    """
    energies = np.asarray(energies_kev, dtype=np.float64).reshape(-1)
    if not energies.size or energies.min() < 10 or energies.max() > 200:
        raise ValueError(f"energies_kev: expected values from 10 to 200 keV, got {energies.tolist()}")
    rows = []
    for name in materials:
        if name not in MATERIALS:
            raise ValueError(f"materials: expected some of {sorted(MATERIALS)}, got {name!r}")
        row = np.empty_like(energies)
        for table in MATERIALS[name]:
            nodes = np.fromiter(table, np.float64)
            spline = CubicSpline(np.log(nodes), np.log(np.fromiter(table.values(), np.float64)))
            above = energies >= nodes[0]  # ranges are in rising order: a later one overwrites from its edge on
            row[above] = np.exp(spline(np.log(energies[above])))
        rows.append(row)
    return torch.from_numpy(np.stack(rows)).float()


def tube_spectrum(energies_kev: Sequence[float] | Tensor, kvp: float, *, filter_mm: float = 6.0) -> Tensor:
    r"""Return the relative photon spectrum of an X-ray tube: Kramers' law behind an aluminium filter.

    ``N(E) ~ (kVp / E - 1) exp(-kappa_Al(E) rho_Al d)`` for ``E < kVp``, normalised to a sum of one. Characteristic
    lines and target self-absorption are left out.

    Args:
        energies_kev: energies in keV, equally spaced, ``(E,)``.
        kvp: tube voltage in kV (largest photon energy in keV).
        filter_mm: thickness ``d`` of the aluminium filter in mm.

    Returns:
        Photon fractions, float32 ``(E,)``.

    Raises:
        ValueError: if no energy lies below ``kvp``.

    References:
        kramers1923

    Example:
        >>> spectrum = tube_spectrum(range(20, 121, 20), 120.0)
        >>> float(spectrum.sum()), float(spectrum[-1])
        (1.0, 0.0)
    """
    energies = torch.as_tensor(np.asarray(energies_kev, dtype=np.float64)).reshape(-1)
    attenuation = mass_attenuation(["aluminium"], energies)[0].double()
    fluence = (kvp / energies - 1).clamp_min(0) * torch.exp(-attenuation * _ALUMINIUM_DENSITY * filter_mm / 10)
    if not bool(fluence.sum() > 0):
        raise ValueError(f"kvp: expected above the smallest energy {float(energies.min())} keV, got {kvp}")
    return (fluence / fluence.sum()).float()


def energy_bins(
    energies_kev: Sequence[float] | Tensor, thresholds_kev: Sequence[float], *, resolution_kev: float = 0.0
) -> Tensor:
    r"""Return the probability that a photon of energy ``E`` is counted in bin ``k`` of a photon-counting detector.

    The recorded energy is ``E`` plus Gaussian noise; bin ``k`` holds ``[t_k, t_{k+1})``, the last one is open above.
    Photons recorded below the first threshold are lost.

    Args:
        energies_kev: photon energies in keV, ``(E,)``.
        thresholds_kev: lower thresholds of the bins in keV, increasing, ``(K,)``.
        resolution_kev: standard deviation of the recorded energy in keV.

    Returns:
        Response, float32 ``(K, E)``; columns sum to at most one.

    Raises:
        ValueError: unless thresholds increase and the resolution is non-negative.

    Example:
        >>> energy_bins([30.0, 50.0, 90.0], [20.0, 60.0])
        tensor([[1., 1., 0.],
                [0., 0., 1.]])
    """
    energies = torch.as_tensor(np.asarray(energies_kev, dtype=np.float64)).reshape(1, -1)
    thresholds = torch.tensor([float(t) for t in thresholds_kev], dtype=torch.float64).reshape(-1, 1)
    if not len(thresholds) or bool((thresholds.diff(dim=0) <= 0).any()):
        raise ValueError(f"thresholds_kev: expected increasing values, got {list(thresholds_kev)}")
    if resolution_kev < 0:
        raise ValueError(f"resolution_kev: expected >= 0, got {resolution_kev}")
    if resolution_kev == 0:
        above = (energies >= thresholds).double()
    else:
        above = 0.5 * torch.erfc((thresholds - energies) / (resolution_kev * sqrt(2)))
    upper = torch.cat([above[1:], torch.zeros_like(above[:1])])
    return (above - upper).float()
