"""Print what the convergence of `pnp_admm_spectralct` rests on, as `python ci/pnp_convergence_spectral.py` does."""

import argparse
import time
from itertools import pairwise

import torch
from torch import Tensor

from multirecon.bundle import find, load, load_network, read_weights
from multirecon.metrics.image import psnr
from multirecon.priors.nonexpansive_checks import central, norms, pair_ratios, rising_steps, worst_pairs
from multirecon.reconstruction.plug_and_play import plug_and_play


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=200, help="points of a run at which |J_Q| is taken")
    parser.add_argument("--power", type=int, default=100, help="power iterations a point")
    parser.add_argument("--side", type=int, default=128, help="side of the images for norms and pairs in pixels")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--ascent", type=int, default=50, help="steps of gradient ascent in float64")
    parser.add_argument("--iterations", type=int, default=500, help="ADMM iterations")
    parser.add_argument("--inner", type=int, default=0, help="bound on a data step; 0 for the bundle's")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    bundle = find("pnp_admm_spectralct")
    workflow = load(bundle, device="$torch.device('cpu')")
    network = load_network(workflow).eval()
    batch = workflow.evaluator.data_loader.collate_fn([workflow.dataset[2]])
    measurement, truth = workflow.evaluator.prepare_batch(batch, torch.device("cpu"), False)
    method = workflow.inferer.reconstructor
    step, start, rho = method.prepare(measurement.embed(method.space))
    scale = method.scales[None]
    peaks = [m.scale for m in measurement.space.modalities]
    for name in ("model", *bundle.controls):
        network.load_state_dict(read_weights(bundle.root / "models" / f"{name}.pt"))
        arguments: list[Tensor] = []

        def denoise(image: Tensor, kept: list[Tensor] = arguments) -> Tensor:
            kept.append(image)
            return network(image)

        begin = time.process_time()
        with torch.no_grad():
            run = plug_and_play(
                step, denoise, start, scale=scale, rho=rho, iterations=chosen.iterations,
                inner_iterations=chosen.inner or method.inner_iterations, inner_tolerance=method.inner_tolerance,
            )  # fmt: skip
        seconds = time.process_time() - begin
        ws = arguments[: chosen.iterations + 1]
        steps = [float(torch.linalg.vector_norm(b - a)) for a, b in pairwise(ws)]
        print(f"{name}: {len(steps)} iterations, {sum(run.inner)} projections forth and back, "
              f"{seconds:.1f} processor s")  # fmt: skip
        shown = ", ".join(f"{float(r):.1e}" for r in run.residuals[:: max(1, len(steps) // 6), 0])
        print(f"  |w+ - w| / |w|: {shown}; at the end {float(run.residuals[-1, 0]):.2e}")
        rounding = 1e-6 * float(torch.linalg.vector_norm(ws[-1]))
        print(f"  steps |w+ - w| that grew by more than 0.1 % to over 1e-6 |w|: {rising_steps(steps, floor=rounding)}")
        print(f"  fixed-point error {float(run.error.max()):.2e}, KKT residual of the data steps: largest "
              f"{run.worst_kkt:.1e}, last {float(run.kkt.max()):.1e}")  # fmt: skip
        decibels = [
            f"{m} {float(psnr(run.x[:, k : k + 1], truth[:, k : k + 1], data_range=peak)):.2f} dB"
            for k, (m, peak) in enumerate(zip(measurement.space.names, peaks, strict=True))
        ]
        print(f"  PSNR {', '.join(decibels)}")
        picked = torch.cat([ws[round(i)] for i in torch.linspace(0, len(ws) - 1, chosen.points).tolist()])
        points = central(picked, chosen.side)
        found = norms(network, points, iterations=chosen.power)
        quantiles = [float(found.max()), *(float(found.quantile(q)) for q in (0.95, 0.5))]
        print(f"  |J_Q| at {len(found)} points: max, 95 %, median {', '.join(f'{v:.4f}' for v in quantiles)}")
        print(f"  {chosen.pairs} pairs: largest ratio {float(pair_ratios(network, points, chosen.pairs).max()):.5f}")
        worst = worst_pairs(network, central(points[:2], min(64, chosen.side)), steps=chosen.ascent)
        print(f"  ascent in float64: {float(worst.max()):.4f}", flush=True)


if __name__ == "__main__":
    main()
