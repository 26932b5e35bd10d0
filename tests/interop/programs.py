"""What the tests against other packages' own programs share: heads as a user has them, and the stock command."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from contract.stock import Done, Stock, arguments
from synthetic_head import fine_maps
from torch.nn.functional import avg_pool2d

from multirecon.bundle import Bundle, load
from multirecon.units import attenuation_to_hu

CPU = "$torch.device('cpu')"
# left, posterior, superior; slices 5 mm apart; a head off the centre of the volume
AFFINE = np.array([[-1.875, 0, 0, 104.0], [0, -1.875, 0, 118.0], [0, 0, 5.0, -12.0], [0, 0, 0, 1.0]])


def interpreter(setting: str, script: str) -> Path:
    """Interpreter of another environment; an error, not a skip, where it is not named: these tests were asked for."""
    value = os.environ.get(setting)
    if not value or not Path(value).is_file():
        pytest.fail(f"{setting}: expected the interpreter of an environment made by {script}, got {value!r}", False)
    return Path(value).absolute()


def head(names: Sequence[str], scale: float = 250.0) -> nib.Nifti1Image:
    """A volume ``(112, 120, 3[, channels])`` as scanners leave it: MR in arbitrary units, CT in HU."""
    maps = {name: avg_pool2d(image, 2)[0] for name, image in fine_maps(256, soft=True).items()}
    channels = []
    for name in names:
        image = attenuation_to_hu(maps["ct"]) if name == "ct" else maps[name] * (1 if name == "pet_fdg" else scale)
        slices = [image[0] if name == "ct" else image[0] * (1 - 0.1 * k) for k in range(3)]
        channels.append(torch.stack(slices, -1)[8:120, 4:124].flip(0).flip(1))
    values = torch.stack(channels, -1).numpy().astype(np.float32)
    return nib.Nifti1Image(values[..., 0] if len(names) == 1 else values, AFFINE)


def drawn(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle; until its weights are trained a copy with freshly drawn ones, which proves all but image quality."""
    if bundle.weights.is_file():
        return bundle
    copy = Bundle(Path(shutil.copytree(bundle.root, folder / bundle.name)))
    if not (copy.configs / "metadata.json").is_file():
        shutil.copy(copy.root / "docs" / "metadata_draft.json", copy.configs / "metadata.json")
    copy.weights.parent.mkdir(exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = load(copy, device=CPU).network_def
        for parameter in network.parameters():  # an untrained network ends in zeros
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    torch.save(network.state_dict(), copy.weights)
    return copy


def run_stock(
    stock: Stock, bundle: Bundle, data: Path, output: Path, **overrides: object
) -> dict[str, nib.Nifti1Image]:
    """Images that ``python -m monai.bundle run`` makes of a folder, by file name."""
    config = str(bundle.configs / "inference.json")
    places = {"bundle_root": str(bundle.root), "dataset_dir": str(data), "output_dir": str(output), "device": CPU}
    done: Done = stock.run(arguments("run", config_file=config, **{**places, **overrides}), output.parent)
    assert done.code == 0, done.err
    return {path.name: nib.load(path) for path in sorted(output.glob("*.nii.gz"))}
