"""PSNR and SSIM of spectral CT on a few validation slices, for settings, controls and opponents.

    python ci/spectral_settings.py dect_sparse fbp_ct tv_petmrct tv_petmrct:joint mcaol_spectralct dps_spectralct
    python ci/spectral_settings.py dect_sparse dps_spectralct,zeta=0.5,steps=100 dps_spectralct:separate,zeta=0.5
    python ci/spectral_settings.py materials_lowdose tv_petmrct dps_spectralct:odps dps_spectralct:imtdps

A word is BUNDLE[:VARIANT][,NAME=VALUE...]: NAME is a setting of the method's ``tuning`` or a key of its configuration.
Every channel is told apart (bins, materials). Ranges are the scales of the modalities; of densities bias and root mean
square error in mg/mL are printed, over the pixels of the head and over those of bone (more than 0.2 g/mL of it); with
--places over soft tissue, vessels and inserts too, and the crosstalk of bone, as the records of the harness have them:

    python ci/spectral_settings.py materials_iodine --places tikhonov_petmrct dps_spectralct:hybrid,steps=100
"""

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from multirecon import tasks
from multirecon.bundle import load, load_network
from multirecon.harness.questions import places
from multirecon.harness.tuning_data import validation_task
from multirecon.measurement import Measurement
from multirecon.metrics import evaluate_channels
from multirecon.metrics.image import psnr, ssim
from multirecon.space import ImageSpace

DENSITY = "g/cm^3"
SETTINGS = (
    "zeta", "strength", "calibration", "weight", "cost", "level", "coupling", "smoothness", "absent_step",
    "absent_weight", "absent_from",
)  # fmt: skip


def parse(word: str) -> tuple[str, str | None, dict[str, Any]]:
    """Return bundle, variant and settings of a word."""
    name, *settings = word.split(",")
    bundle, _, variant = name.partition(":")
    values = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    return bundle, variant or None, values


def numbers(result: Tensor, truth: Tensor, *, unit: str, scale: float) -> Iterator[str]:
    """Yield one text for every channel of a modality ``(B, C, H, W)``, means over the samples."""
    for k in range(truth.shape[1]):
        mine, true = result[:, k : k + 1], truth[:, k : k + 1]
        values = [float(metric(mine, true, data_range=scale).mean()) for metric in (psnr, ssim)]
        text = f"{values[0]:.2f} {values[1]:.3f}"
        if unit == DENSITY:
            error = 1e3 * (mine - true)
            for mask in (truth.sum(1, keepdim=True) > 0.1, truth[:, 1:2] > 0.2):
                text += f" [{float(error[mask].mean()):+.0f}, {float(error[mask].square().mean().sqrt()):.0f}]"
        yield text


def line(result: Tensor, truth: Tensor, space: ImageSpace) -> str:
    """Return the numbers of all modalities."""
    parts = []
    for m in space.modalities:
        here = space.channels(m.name)
        parts.append(f"{m.name} {' / '.join(numbers(result[:, here], truth[:, here], unit=m.unit, scale=m.scale))}")
    return "; ".join(parts)


def by_place(result: Tensor, truth: Tensor, space: ImageSpace, places: list[dict[str, Tensor]], names: Any) -> str:
    """Return a line a channel of the harness's metrics of energies and materials, means over the samples."""
    samples = [
        evaluate_channels(result[k : k + 1], truth[k : k + 1], space, channels=names, places=found)
        for k, found in enumerate(places)
    ]
    lines = []
    for key in samples[0]:
        metrics = dict.fromkeys(m for s in samples for m in s[key])
        found = {m: [s[key][m] for s in samples if m in s[key]] for m in metrics}
        mean = {m: sum(v) / len(v) for m, v in found.items()}
        regions = [m.partition("@")[2] for m in mean if m.startswith("bias@")]
        text = f"PSNR {mean['psnr']:.2f} SSIM {mean['ssim']:.3f}"
        text += "".join(f" {r} [{mean[f'bias@{r}']:+.2f}, {mean[f'rmse@{r}']:.2f}]" for r in regions)
        lines.append(f"    {key:18} {text}" + (f" crosstalk {mean['crosstalk']:+.1f}" if "crosstalk" in mean else ""))
    return "\n".join(lines)


def measure(
    task_name: str, slices: int, *, test: bool
) -> tuple[list[tuple[Measurement, Tensor]], str, list[dict[str, Tensor]], Any]:
    """Return measurements with their truths, a line that says of what, places of contrast, and names of channels."""
    task = tasks.load(task_name)
    task = task if test else validation_task(task, slices=slices)
    found = task.samples("small" if test else "validation")
    step = max(1, 8 // slices) if test else 1  # eight slices a subject
    samples = [found[k] for k in range(step // 2, len(found), step)]
    names = ", ".join(str(s["id"]) for s in samples)
    kind = "test" if test else "validation"
    title = f"{task_name}: {len(samples)} {kind} slices, {names}"
    return [task.measure(sample) for sample in samples], title, [places(s) for s in samples], task.channels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("words", nargs="+", metavar="word")
    parser.add_argument("--slices", type=int, default=1, help="slices a subject")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of the sampler")
    parser.add_argument("--test", action="store_true", help="the test anatomies in the place of validation")
    parser.add_argument("--places", action="store_true", help="materials by place, as in the records")
    chosen = parser.parse_args()
    cases, title, where, names = measure(chosen.task, chosen.slices, test=chosen.test)
    print(title)
    truth, space = torch.cat([t for _, t in cases]), cases[0][0].space
    for word in chosen.words:
        bundle, variant, values = parse(word)
        keys = {k: v for k, v in values.items() if k not in SETTINGS}
        workflow = load(bundle, variant, device="$torch.device('cpu')", **keys)
        network, inferer = load_network(workflow), workflow.inferer
        if "tuning" in workflow.parser:
            tuning = workflow.parser.get_parsed_content("tuning")
            tuning.parameters.update({k: v for k, v in values.items() if k in tuning.parameters})
        reasons = inferer.capability.refusals(cases[0][0])
        if reasons:
            print(f"{word:45} does not apply: {'; '.join(reasons)}", flush=True)
            continue
        start, results = time.process_time(), []
        for seed in range(chosen.seeds):
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                images = [inferer(m, network, generator=generator).as_tensor() for m, _ in cases]
            results.append(torch.cat(images))
        seconds = (time.process_time() - start) / len(results) / len(cases)
        for seed, result in enumerate(results):
            print(f"{word:45} seed {seed} {seconds:6.1f} s  {line(result, truth, space)}", flush=True)
            if chosen.places:
                print(by_place(result, truth, space, where, names), flush=True)
        if len(results) > 1:
            mean, spread = torch.stack(results).mean(0), float(torch.stack(results).std(0).mean())
            print(f"{word:45} mean of {len(results)}       {line(mean, truth, space)}; spread {spread:.4f}", flush=True)


if __name__ == "__main__":
    main()
