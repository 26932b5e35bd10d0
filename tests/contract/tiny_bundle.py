"""A complete small bundle, written for tests: a trained-looking network after a zero-filled MR reconstruction."""

import json
import textwrap
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch

from multirecon.bundle import Bundle, fresh_network, write_weights
from multirecon.bundle.loader import on_path

ROOT = Path(__file__).resolve().parents[2]

MODULE = '''
"""The method of the bundle NAME."""

import torch
from torch import Tensor, nn

from multirecon.reconstruction import Capability, Reconstructor


class Network(nn.Module):
    """One residual convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the image with its correction."""
        return image + self.layer(image)


class Method(Reconstructor):
    """The network applied to the back-projection."""

    capability = Capability(operators=frozenset({"masked_fourier", "identity"}))

    def reconstruct(self, measurement, network, *, generator, callback):
        """Return the stack."""
        return network(measurement.back_projection())


class Images(torch.utils.data.Dataset):
    """Blocks of random height."""

    def __init__(self, count: int = 3) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        """Return one sample."""
        if index >= self.count:
            raise IndexError(index)
        heights = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(index))
        image = nn.functional.interpolate(heights, scale_factor=4)[0]
        affine = torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0], dtype=torch.float64))
        affine[2, 3] = 5.0 * index
        return {"image": image, "fine": image, "id": f"blocks-{index}", "affine": affine}
'''

SPACE = {"_target_": "multirecon.space.ImageSpace", "modalities": ["flair"], "shape": [16, 16], "spacing_mm": [2, 2]}
ACQUISITION = {
    "_target_": "multirecon.acquisition.Acquisition",
    "space": "@space",
    "key": "tiny",
    "scans": {"*": {"_target_": "multirecon.acquisition.CartesianMR", "acceleration": 2, "coils": 2, "sigma": 0.01}},
}
GUARD = {"_target_": "multirecon.bundle.guard"}


def _loader(dataset: str) -> dict[str, Any]:
    collate = {"_target_": "multirecon.engines.collate", "_mode_": "callable"}
    return {"_target_": "DataLoader", "dataset": dataset, "batch_size": 1, "num_workers": 0, "collate_fn": collate}


def _common(name: str) -> dict[str, Any]:
    return {
        "imports": ["$import os", "$import monai.handlers"],
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "dataset_dir": "",
        "output_dir": "$os.path.join(@bundle_root, 'eval')",
        "space": SPACE,
        "acquisition": ACQUISITION,
        "network_def": {"_target_": f"{name}.Network"},
        "network": "$@network_def.to(@device)",
        "prepare_batch": {"_target_": "multirecon.engines.PrepareMeasurement", "acquisition": "@acquisition"},
        "initialize": ["$monai.utils.set_determinism(seed=0)"],
    }


def _inference(name: str) -> dict[str, Any]:
    return {
        **_common(name),
        "ckpt_path": "$os.path.join(@bundle_root, 'models', 'model.pt')",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "multirecon.inputs.LoadInputd", "keys": "image"}],
        },
        "dataset": {
            "_target_": "multirecon.inputs.InputFolder",
            "dataset_dir": "@dataset_dir",
            "transform": "@preprocessing",
            "default": {"_target_": f"{name}.Images"},
        },
        "dataloader": _loader("@dataset"),
        "inferer": {
            "_target_": f"{name}.Method",
            "source": {"_target_": "multirecon.reconstruction.ImageSource", "space": "@space"},
        },
        "postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "EnsureTyped", "keys": "pred"}]},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "@ckpt_path",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            },
            {"_target_": "multirecon.engines.SaveReconstructions", "output_dir": "@output_dir", "space": "@space"},
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "prepare_batch": "@prepare_batch",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "decollate": False,
        },
        "run": [GUARD, "$@evaluator.run()"],
    }


def _train(name: str) -> dict[str, Any]:
    output = "$monai.handlers.from_engine(['pred', 'label'])"
    metric = {"_target_": "PeakSignalToNoiseRatio", "max_val": 1.0, "output_transform": output}
    return {
        **_common(name),
        "ckpt_dir": "$os.path.join(@bundle_root, 'models')",
        "val_interval": 1,
        "loss": {"_target_": "torch.nn.MSELoss"},
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.01},
        "train": {
            "dataset": {"_target_": f"{name}.Images", "count": 4},
            "dataloader": _loader("@train#dataset"),
            "inferer": {"_target_": f"{name}.Method"},
            "handlers": [
                {"_target_": "ValidationHandler", "validator": "@validate#evaluator", "interval": "@val_interval"},
            ],
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": 2,
                "device": "@device",
                "train_data_loader": "@train#dataloader",
                "network": "@network",
                "loss_function": "@loss",
                "optimizer": "@optimizer",
                "inferer": "@train#inferer",
                "prepare_batch": "@prepare_batch",
                "train_handlers": "@train#handlers",
                "decollate": False,
            },
        },
        "validate": {
            "dataset": {"_target_": f"{name}.Images", "count": 2},
            "dataloader": _loader("@validate#dataset"),
            "inferer": {"_target_": f"{name}.Method"},
            "key_metric": {"val_psnr": metric},
            "handlers": [
                {
                    "_target_": "CheckpointSaver",
                    "save_dir": "@ckpt_dir",
                    "save_dict": {"model": "@network"},
                    "save_key_metric": True,
                    "key_metric_filename": "model.pt",
                }
            ],
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@validate#dataloader",
                "network": "@network",
                "inferer": "@validate#inferer",
                "prepare_batch": "@prepare_batch",
                "key_val_metric": "@validate#key_metric",
                "val_handlers": "@validate#handlers",
                "decollate": False,
            },
        },
        "run": [GUARD, "$@train#trainer.run()"],
    }


def _evaluate() -> dict[str, Any]:
    load = {
        "_target_": "CheckpointLoader",
        "load_path": "$os.path.join(@ckpt_dir, 'model.pt')",
        "load_dict": {"model": "@network"},
    }
    save = {"_target_": "MetricsSaver", "save_dir": "@output_dir", "metrics": ["val_psnr"], "summary_ops": "*"}
    return {"validate#handlers": [load, save], "run": [GUARD, "$@validate#evaluator.run()"]}


def _metadata(name: str, learned: bool) -> dict[str, Any]:
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": 1,
        "spatial_shape": ["8*n", "8*n"],
        "dtype": "float32",
        "value_range": [0, 1],
        "channel_def": {"0": "flair"},
    }
    weights = {"source": "trained", "data": "blocks", "command": "none, written by a test"}
    return {
        "schema": "https://example.org/meta_schema.json",
        "name": name,
        "version": "0.1.0",
        "changelog": {"0.1.0": "first version"},
        "monai_version": "1.6.1",
        "pytorch_version": "2.14.1",
        "numpy_version": "2.4.6",
        "required_packages_version": {"nibabel": "5.4.2"},
        "task": "MR reconstruction of blocks",
        "description": "A bundle for tests",
        "authors": "The tests",
        "copyright": "Copyright of the tests",
        "intended_use": "tests only",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": image}},
        "multirecon": {"learned": learned, "family": "mr", **({"weights": weights} if learned else {})},
    }


LOGGING = """
    [loggers]
    keys=root
    [handlers]
    keys=console
    [formatters]
    keys=plain
    [logger_root]
    level=INFO
    handlers=console
    [handler_console]
    class=StreamHandler
    level=INFO
    formatter=plain
    args=(sys.stdout,)
    [formatter_plain]
    format=%(levelname)s %(message)s
"""


def write_tiny(folder: Path, name: str = "tiny_mr", *, learned: bool = False) -> Bundle:
    """Write the bundle ``folder / name``."""
    root = folder / name
    for part in ("configs", "docs", "models"):
        (root / part).mkdir(parents=True)
    copyfile(ROOT / "LICENSE", root / "LICENSE")
    (root / "docs" / "README.md").write_text(f"# {name}\n\nA bundle for tests.\n", encoding="utf-8")
    (root / f"{name}.py").write_text(MODULE.replace("NAME", name).lstrip(), encoding="utf-8")
    (root / "configs" / "logging.conf").write_text(textwrap.dedent(LOGGING).lstrip(), encoding="utf-8")
    configs = {"inference": _inference(name), "train": _train(name), "evaluate": _evaluate()}
    configs["metadata"] = _metadata(name, learned)
    if learned:
        configs["multi_gpu_train"] = {"device": "$torch.device('cuda')"}
    for key, content in configs.items():
        (root / "configs" / f"{key}.json").write_text(json.dumps(content, indent=4), encoding="utf-8")
    bundle = Bundle(root)
    on_path(bundle)
    write_weights(fresh_network(_inference(name), seed=1).state_dict(), bundle.weights)
    return bundle


def edit(path: Path, **changes: Any) -> None:
    """Change top-level keys of a JSON file; ``None`` removes a key."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    path.write_text(json.dumps(content, indent=4), encoding="utf-8")


def randomise(bundle: Bundle) -> None:
    """Give the bundle other weights."""
    state = torch.load(bundle.weights, weights_only=True)
    write_weights({key: torch.randn_like(value) for key, value in state.items()}, bundle.weights)
