"""Draw the figures of docs/data.md: simulated beside real slices, and one phantom in all its volumes.

python docs/figures/phantom_figures.py [--anatomies 13 10 mni152]

The first figure needs MULTIRECON_REAL_DATA (MS patient 07 of the open MS data, CC BY); without it, only the second one.
"""

import argparse
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

from multirecon.data.anatomies import list_anatomies
from multirecon.data.phantoms import Phantom, PhantomConfig, simulate

HERE = Path(__file__).parent
CONTRASTS = {"t1": "T1", "t2": "T2", "flair": "FLAIR"}
WINDOWS = {
    "t1": (0, 0.9), "t2": (0, 0.9), "flair": (0, 0.9), "t2star": (0, 0.9), "ct": (-20, 90), "pet_fdg": (0, 1.4),
    "pet_amyloid": (0, 2.2), "attenuation_511": (0, 0.16), "water": (0, 1.2), "bone": (0, 1.0), "iodine": (0, 0.006),
}  # fmt: skip


def crop(mask: np.ndarray) -> tuple[slice, slice]:
    """Box of the mask over x and y, grown by 4 voxels."""
    x, y = np.nonzero(mask.any((1, 2)))[0], np.nonzero(mask.any((0, 2)))[0]
    return slice(max(x[0] - 4, 0), x[-1] + 5), slice(max(y[0] - 4, 0), y[-1] + 5)


def real_slices(folder: Path, heights: list[float]) -> dict[str, list[np.ndarray]]:
    """Slices of MS patient 07 at shares of the brain's height, scaled to the 99.3th percentile."""
    stack = {
        k: np.asarray(nib.as_closest_canonical(nib.load(folder / f"patient07_{v}.nii.gz")).dataobj, np.float32)
        for k, v in CONTRASTS.items()
    }
    brain = stack["t1"] > 0.02 * np.percentile(stack["t1"], 99)
    return scaled_slices(stack, brain, heights)


def simulated_slices(anatomy: str, seed: int, heights: list[float]) -> dict[str, list[np.ndarray]]:
    """The same of a skull-stripped phantom with 1 mm voxels, over the whole brain."""
    config = PhantomConfig(
        spacing_mm=(1.0, 1.0, 1.0), matrix=240, coverage="brain", deformation=0.4, parameter_spread=0.02,
        ms_probability=1.0, infarct_probability=0.0, bias=(0.0, 0.03), mr_noise=0.004, skull_stripped=True,
    )  # fmt: skip
    phantom = simulate(anatomy, seed, config=config)
    stack = {k: phantom.volumes[k].numpy() for k in CONTRASTS}
    return scaled_slices(stack, phantom.masks["brain"].numpy(), heights)


def scaled_slices(stack: dict[str, np.ndarray], brain: np.ndarray, heights: list[float]) -> dict[str, list[np.ndarray]]:
    levels = np.nonzero(brain.sum((0, 1)) > 500)[0]
    x, y = crop(brain)
    chosen = [int(levels[0] + h * (levels[-1] - levels[0])) for h in heights]
    return {k: [v[x, y, z] / np.percentile(v[brain], 99.3) for z in chosen] for k, v in stack.items()}


def side_by_side(folder: Path, anatomies: list[str]) -> None:
    """Real patient on top, simulated subjects below; columns are contrasts at three heights."""
    heights = [0.40, 0.52, 0.72]
    rows = [("real (MS patient 07)", real_slices(folder, heights))]
    rows += [(f"simulated ({name})", simulated_slices(name, 11, heights)) for name in anatomies]
    figure, axes = plt.subplots(len(rows), 9, figsize=(18, 2.55 * len(rows)), facecolor="black")
    for row, (title, images) in enumerate(rows):
        for column, (contrast, level) in enumerate((c, i) for c in CONTRASTS for i in range(3)):
            axis = axes[row, column]
            axis.imshow(images[contrast][level].T, origin="lower", cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
            if column == 0:
                axis.set_title(title, color="white", loc="left", fontsize=9, pad=2)
            if row == 0 and level == 1:
                axis.set_title(CONTRASTS[contrast], color="white", fontsize=10, pad=2)
    figure.subplots_adjust(0, 0, 1, 0.95, 0.01, 0.07)
    figure.savefig(HERE / "phantom_vs_real.png", dpi=75, facecolor="black")


def all_volumes(phantom: Phantom) -> None:
    """Every volume of one phantom at two heights."""
    useful = phantom.useful_slices
    z = [useful[int(f * len(useful))] for f in (0.3, 0.6)]
    images = phantom.slices(z)
    figure, axes = plt.subplots(2, len(images), figsize=(2 * len(images), 4.2), facecolor="black")
    for column, (name, stack) in enumerate(images.items()):
        for row in range(2):
            low, high = WINDOWS[name]
            axes[row, column].imshow(stack[row].T, origin="lower", cmap="gray", vmin=low, vmax=high)
            axes[row, column].set_axis_off()
        axes[0, column].set_title(name, color="white", fontsize=9, pad=2)
    figure.subplots_adjust(0, 0, 1, 0.95, 0.01, 0.01)
    figure.savefig(HERE / "phantom_volumes.png", dpi=60, facecolor="black")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--anatomies", nargs="+", default=["13", "10", "mni152"])
    chosen = [a for a in parser.parse_args().anatomies if a == "mni152" or a in list_anatomies()]
    if os.environ.get("MULTIRECON_REAL_DATA"):
        side_by_side(Path(os.environ["MULTIRECON_REAL_DATA"]) / "ms_mni", chosen)
    all_volumes(simulate(chosen[0], 2, config=PhantomConfig(ms_probability=1.0)))
