"""The supervised MR bundles as tests see them: small networks on a small set of slices."""

import sys
from pathlib import Path

from monai.bundle import ConfigWorkflow

from multirecon.data.cached_slices import build

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
SMALL = {"mcvarnet_mr": {"features": 4}, "minet_mr": {"features": 16, "groups": 1, "blocks": 1}}
TRAINED = tuple(SMALL)


def count(network):
    return sum(p.numel() for p in network.parameters())


def workflow(name, *configs, **overrides):
    """Return a workflow of a bundle whose module can be imported; ``overrides`` as on the command line."""
    root = BUNDLES / name
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return ConfigWorkflow(
        config_file=[str(root / "configs" / f"{config}.json") for config in configs],
        meta_file=str(root / "configs" / "metadata.json"),
        workflow_type="train",
        logging_file=False,
        **overrides,
    )


def common(name, dataset):
    """Return overrides that make a training step take a fraction of a second."""
    return {
        **{f"network_def#{key}": value for key, value in SMALL[name].items()},
        "space#shape": [32, 32],
        "space#spacing_mm": [7.5, 7.5],
        "rows": 16,
        "batch_size": 2,
        "epoch_length": 1,
        "bundle_root": str(BUNDLES / name),
        "dataset_dir": dataset,
        "device": "$torch.device('cpu')",
    }


def tiny_set(folder):
    """Build training and validation slices of the embedded anatomy on the fine grid of 64 x 64."""
    tiny = {"spacing_mm": (7.5, 7.5, 7.5), "matrix": 32}
    for split in ("train", "validation"):
        build(folder / split, split, 1, shape=(64, 64), spacing_mm=3.75, anatomies=["mni152"], config=tiny,
              modalities=["flair", "t1"], progress=False)  # fmt: skip
    return str(folder)
