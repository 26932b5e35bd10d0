"""What the clean reference contributes: the same data with another reference, `python ci/reference_control.py BUNDLE`.

The reference is left as it is, replaced by zeros, by the slice of another subject, or shifted by 5 mm. PSNR and SSIM of
the target are means over the samples of the task's small set.
"""

import argparse
from collections.abc import Callable

import torch
from monai.metrics import PSNRMetric, SSIMMetric
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from multirecon import tasks
from multirecon.blocks import Blocks
from multirecon.bundle import load, load_network
from multirecon.measurement import Measurement

SHIFT_MM = 5.0


def shifted(image: Tensor, pixels: float) -> Tensor:
    """Return slices moved along both axes, by ``pixels`` in all."""
    step = 2 * pixels / 2**0.5 / torch.tensor(image.shape[-1:-3:-1])
    theta = torch.tensor([[1.0, 0.0, -float(step[0])], [0.0, 1.0, -float(step[1])]])
    grid = affine_grid(theta.expand(len(image), 2, 3), list(image.shape), align_corners=False)
    return grid_sample(image, grid, align_corners=False)


def with_reference(measurement: Measurement, name: str, image: Tensor) -> Measurement:
    """Return the measurement with another clean image."""
    y = Blocks({n: image if n == name else t for n, t in measurement.y.items()})
    return Measurement(y, measurement.operator, measurement.likelihood, measurement.metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--task", default="flair_x4_t1")
    parser.add_argument("--reference", default="t1")
    arguments = parser.parse_args()
    workflow = load(arguments.bundle, device="$torch.device('cpu')")
    network = load_network(workflow).eval()
    task = tasks.load(arguments.task)
    samples = [task.samples("small")[i] for i in range(len(task.samples("small")))]
    pairs = [task.measure(item) for item in samples]
    subjects = [str(item["id"]).rsplit("/", 1)[0] for item in samples]
    # the same place of the next subject
    count = subjects.count(subjects[0])
    others = [pairs[(i + count) % len(pairs)][0].y[arguments.reference] for i in range(len(pairs))]
    changes: dict[str, Callable[[int, Tensor], Tensor]] = {
        "as it is": lambda i, image: image,
        "zeros": lambda i, image: torch.zeros_like(image),
        "another subject's": lambda i, image: others[i],
        f"shifted by {SHIFT_MM:g} mm": lambda i, image: shifted(image, SHIFT_MM / task.space.spacing_mm[0]),
    }
    print(f"{arguments.bundle} on {arguments.task}, {len(pairs)} samples of {len(set(subjects))} subjects")
    print("| reference | PSNR (dB) | SSIM |\n|---|---|---|")
    channel = task.space.channels(task.targets[0])
    for label, change in changes.items():
        psnr, ssim = PSNRMetric(max_val=1.0), SSIMMetric(spatial_dims=2)
        for i, (measurement, truth) in enumerate(pairs):
            changed = with_reference(measurement, arguments.reference, change(i, measurement.y[arguments.reference]))
            with torch.no_grad():
                result = workflow.inferer(changed, network).as_tensor()[:, channel]
            psnr(result, truth[:, channel])
            ssim(result, truth[:, channel])
        print(f"| {label} | {psnr.aggregate().item():.2f} | {ssim.aggregate().item():.4f} |", flush=True)


if __name__ == "__main__":
    main()
