"""A head of a few ellipses: fine maps of every kind that a scan may look at, on any grid."""

import torch
from torch.nn.functional import avg_pool2d

from multirecon.data.materials import attenuation_511, materials_from_hu
from multirecon.likelihoods import Gaussian
from multirecon.operators import mass_attenuation
from multirecon.units import hu_to_attenuation

FIELD_MM = 240.0
# scalp, skull, brain, ventricle, lesion (values replace what lies below)
_ELLIPSES = ((0, 0, 80, 100), (0, 0, 73, 93), (0, 0, 65, 85), (0, 10, 12, 30), (35, -30, 12, 12))
_VALUES = {
    "t1": (0.8, 0.12, 0.45, 0.1, 0.3),
    "t2": (0.4, 0.1, 0.5, 1.0, 0.8),
    "flair": (0.5, 0.1, 0.5, 0.1, 0.9),
    "t2star": (0.3, 0.1, 0.55, 0.8, 0.6),
    "hu": (-60.0, 800.0, 35.0, 8.0, 30.0),
    "pet_fdg": (0.1, 0.1, 0.8, 0.05, 1.2),
}


def fine_maps(size: int, *, soft: bool = False) -> dict[str, torch.Tensor]:
    """Return name -> (1, channels, size, size): the modalities, "attenuation" (1/cm) and "materials" (g/cm^3)."""
    place = (torch.arange(size, dtype=torch.float64) + 0.5) * FIELD_MM / size - FIELD_MM / 2
    maps = {name: torch.full((1, 1, size, size), -1000.0 if name == "hu" else 0.0) for name in _VALUES}
    for number, (a, b, ra, rb) in enumerate(_ELLIPSES):
        radius = (((place[:, None] - a) / ra) ** 2 + ((place - b) / rb) ** 2).sqrt()
        inside = torch.sigmoid((1 - radius) * 8) if soft else (radius < 1).double()
        for name, values in _VALUES.items():
            maps[name] = maps[name] * (1 - inside) + values[number] * inside
    maps = {name: image.float() for name, image in maps.items()}
    hu = maps.pop("hu")
    maps["materials"] = torch.cat(materials_from_hu(hu), dim=1)
    maps["ct"] = hu_to_attenuation(hu)
    maps["attenuation"] = attenuation_511(hu)
    return maps


def item(
    names: list[str], size: int, energies: dict[str, list[float]] | None = None, *, iodine: bool = False
) -> dict[str, object]:
    """Return an item like those of the data sets: the named modalities on a grid of `size` and on the 2x finer one.

    With `iodine` a third material fills the lesion, 8 mg/mL.
    """
    maps = fine_maps(2 * size)
    basis = ("water", "bone", "iodine")[: 2 + iodine]
    if iodine:
        lesion = (maps["pet_fdg"] == _VALUES["pet_fdg"][-1]).float()
        maps["materials"] = torch.cat([maps["materials"], 8e-3 * lesion], dim=1)
    for name, kev in (energies or {}).items():
        kappa = mass_attenuation(basis, kev)
        maps[name] = torch.einsum("mk,bmhw->bkhw", kappa, maps["materials"])
    fine = torch.cat([maps[name] for name in names], dim=1)
    return {
        "fine": fine[0],
        "image": avg_pool2d(fine, 2)[0],
        "attenuation_fine": maps["attenuation"][0],
        "materials_fine": maps["materials"][0],
        "id": "synthetic/0/0",
    }


def pearson(measurement, truth: torch.Tensor, name: str) -> tuple[float, int]:
    """Return the mean squared residual of the truth over the variance of the model, and the number of data."""
    y, likelihood = measurement.y[name], measurement.likelihood[name]
    with torch.no_grad():
        mean = likelihood.mean(measurement.operator[name](truth[:, measurement.space.channels(name)]))
    if y.is_complex():
        sampled = y != 0
        terms = (y - mean)[sampled].abs() ** 2 / (2 * likelihood.sigma.flatten()[0] ** 2)
        return float(terms.mean()), 2 * int(sampled.sum())
    if isinstance(likelihood, Gaussian):
        return float(((y - mean).double() ** 2).mean() / likelihood.sigma.flatten()[0] ** 2), y.numel()
    seen = mean > 1e-6
    return float(((y - mean)[seen].double() ** 2 / mean[seen].double()).mean()), int(seen.sum())
