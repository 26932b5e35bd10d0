"""Measure what the inverse crime would hide: the same scans with data from the object and from the model handed over.

    python ci/crime_gap.py [--samples 4] [TASK ...]

Prints a Markdown table for docs/tasks.md: the mean squared residual of the truth over the variance of the model (1
where the model is exact), and the PSNR of one plain reconstruction, both for the task's data (object) and for data
drawn from the model (crime). The plain reconstructions are conjugate gradients on weighted least squares (MR, CT),
MLEM (PET) and separable surrogates (materials), without regularisation, stopped at the iteration best for the slice.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from multirecon import tasks
from multirecon.likelihoods import Gaussian, Poisson, PolyenergeticPoisson, gaussian_approximation
from multirecon.measurement import Measurement
from multirecon.metrics import psnr, reporting_range
from multirecon.solvers import least_squares, mlem, separable_surrogate

# task -> block looked at
CASES = {
    "flair_x4": "flair",
    "flair_x4c": "flair",
    "flair_x4_t1_scanner_b": "flair",
    "ct_sparse60": "ct",
    "ct_lowdose": "ct",
    "ct_sparse60_scanner_b": "ct",
    "pet_counts_5": "pet_fdg",
    "pet_counts_50": "pet_fdg",
    "petct_lowdose": "pet_fdg",
    "pet_mr_lowdose": "pet_fdg",
    "dect_sparse": "ct_low",
    "spectralct_lowdose": "ct_bins",
    "materials_lowdose": "materials",
}


@torch.no_grad()
def best_psnr(measurement: Measurement, truth: torch.Tensor, name: str, data_range: float) -> float:
    operator, likelihood, y = measurement.operator[name], measurement.likelihood[name], measurement.y[name]
    values = []

    def follow(iteration: int, x: torch.Tensor, info: dict) -> None:
        values.append(float(psnr(x, truth, data_range=data_range)))

    if isinstance(likelihood, Poisson):
        mlem(operator, likelihood, y, iterations=40, callback=follow)
    elif isinstance(likelihood, PolyenergeticPoisson):
        start = torch.full((1, *operator.domain_shape), 0.1)
        separable_surrogate(operator, likelihood, y, x0=start, iterations=150, callback=follow)
    else:
        data, noise = gaussian_approximation(likelihood, y)
        weight = noise.sigma**-2
        least_squares(operator, data, weight=weight / weight.max(), max_iterations=40, callback=follow)
    return max(values)


@torch.no_grad()
def misfit(measurement: Measurement, truth: torch.Tensor, name: str) -> float:
    y, likelihood = measurement.y[name], measurement.likelihood[name]
    mean = likelihood.mean(measurement.operator[name](truth))
    if isinstance(likelihood, Gaussian):
        sampled = y != 0
        return float(((y - mean)[sampled].abs() ** 2).mean() / (2 * likelihood.sigma.flatten()[0] ** 2))
    seen = mean > 1e-6
    return float(((y - mean)[seen].double() ** 2 / mean[seen].double()).mean())


def compare(task_name: str, samples: int) -> str:
    task = tasks.load(task_name)
    crime = replace(task, acquisition=task.acquisition.with_inverse_crime())
    name = CASES.get(task_name, task.targets[0])
    data_range = reporting_range(task.space[name]).stack_range
    items = task.samples("small")
    rows = []
    for index in range(0, len(items), max(1, len(items) // samples)):
        for kind in (task, crime):
            measurement, truth = kind.measure(items[index])
            truth = truth[:, task.space.channels(name)]
            rows.append((misfit(measurement, truth, name), best_psnr(measurement, truth, name, data_range)))
    table = torch.tensor(rows).reshape(-1, 2, 2).mean(0)
    (misfit_object, psnr_object), (misfit_crime, psnr_crime) = table.tolist()
    return (f"| `{task_name}` | `{name}` | {misfit_object:.2f} | {misfit_crime:.2f} | {psnr_object:.2f} | "
            f"{psnr_crime:.2f} | {psnr_crime - psnr_object:+.2f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(CASES), help="names of tasks")
    parser.add_argument("--samples", type=int, default=4, help="slices of the small set that are looked at")
    arguments = parser.parse_args()
    print("| task | block | residual, object | residual, crime | dB, object | dB, crime | gap in dB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.tasks:
        print(compare(name, arguments.samples), flush=True)


if __name__ == "__main__":
    main()
