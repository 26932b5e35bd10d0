"""What the clean reference contributes: the same data with another reference, `python ci/reference_control.py METHOD`.

METHOD is NAME or NAME:VARIANT of a bundle. The reference is left as it is, replaced by zeros, by the slice of another
subject, or shifted by 5 mm. PSNR and SSIM of the target are means over the samples of the task's small set; what is
lost in PSNR is a paired difference with its 95 % bootstrap interval over anatomies.
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
from multirecon.harness.statistics import anatomy_interval
from multirecon.measurement import Measurement

SHIFT_MM = 5.0
AS_IT_IS = "as it is"

Scores = dict[str, list[tuple[str, float, float]]]
"""Change of the reference -> anatomy, PSNR in dB and SSIM of every sample."""


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


def control(method: str, task_name: str, reference: str = "t1", *, every: int = 1, show: bool = False) -> Scores:
    """Return the scores of a method on a task's small set with the reference as it is and changed.

    Args:
        method: NAME or NAME:VARIANT of a bundle.
        task_name: the task.
        reference: the clean modality that is changed.
        every: take every n-th slice alone.
        show: print every change as soon as it is done.
    """
    name, _, variant = method.partition(":")
    workflow = load(name, variant or None, device="$torch.device('cpu')")
    network = load_network(workflow).eval()
    task = tasks.load(task_name)
    found = task.samples("small")
    samples = [found[i] for i in range(0, len(found), every)]
    pairs = [task.measure(item) for item in samples]
    subjects = [str(item["id"]).rsplit("/", 1)[0] for item in samples]
    # the same place of the next subject
    count = subjects.count(subjects[0])
    others = [pairs[(i + count) % len(pairs)][0].y[reference] for i in range(len(pairs))]
    changes: dict[str, Callable[[int, Tensor], Tensor]] = {
        AS_IT_IS: lambda i, image: image,
        "zeros": lambda i, image: torch.zeros_like(image),
        "another subject's": lambda i, image: others[i],
        f"shifted by {SHIFT_MM:g} mm": lambda i, image: shifted(image, SHIFT_MM / task.space.spacing_mm[0]),
    }
    channel = task.space.channels(task.targets[0])
    scores: Scores = {}
    for label, change in changes.items():
        psnr, ssim = PSNRMetric(max_val=1.0), SSIMMetric(spatial_dims=2)
        for i, (measurement, truth) in enumerate(pairs):
            changed = with_reference(measurement, reference, change(i, measurement.y[reference]))
            with torch.no_grad():
                result = torch.as_tensor(workflow.inferer(changed, network))[:, channel]
            psnr(result, truth[:, channel])
            ssim(result, truth[:, channel])
        values = zip(subjects, psnr.get_buffer().flatten().tolist(), ssim.get_buffer().flatten().tolist(), strict=True)
        scores[label] = [(subject.partition("/")[0], *found) for subject, *found in values]
        if show:
            print(row(label, scores), flush=True)
    return scores


def row(label: str, scores: Scores) -> str:
    """Return a line of the table: means, and what is lost against the reference as it is."""
    mine = scores[label]
    psnr, ssim = (sum(v[k] for v in mine) / len(mine) for k in (1, 2))
    lost = "–"
    if label != AS_IT_IS:
        lost = anatomy_interval((a, q - p) for (a, p, _), (_, q, _) in zip(scores[AS_IT_IS], mine, strict=True)).text(
            2, sign=True
        )
    return f"| {label} | {psnr:.2f} | {ssim:.4f} | {lost} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method")
    parser.add_argument("--task", default="flair_x4_t1")
    parser.add_argument("--reference", default="t1")
    parser.add_argument("--every", type=int, default=1, help="every n-th slice alone")
    arguments = parser.parse_args()
    print(f"{arguments.method} on {arguments.task}")
    print("| reference | PSNR (dB) | SSIM | PSNR, difference |\n|---|---|---|---|")
    scores = control(arguments.method, arguments.task, arguments.reference, every=arguments.every, show=True)
    print(f"{len(scores[AS_IT_IS])} samples of {len({v[0] for v in scores[AS_IT_IS]})} anatomies")


if __name__ == "__main__":
    main()
