"""Print what the convergence of `pnp_admm_pet` rests on: `python ci/pnp_convergence.py [--points 200 ...]`.

With `--dataset_dir` (a folder of `multirecon dataset build`) points and pairs come from all validation subjects. A
variant with a guide sees the true one of the scanned slice beside all of them.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import torch

from multirecon.bundle import find, load, load_network
from multirecon.bundle.loader import on_path
from multirecon.data.cached_slices import CachedSlices
from multirecon.reconstruction.em import unit_range
from multirecon.reconstruction.plug_and_play import plug_and_play
from multirecon.solvers.data_steps import EmissionStep
from multirecon.solvers.em_engine import TorchEM
from multirecon.space import ImageSpace


def clean_images(folder: str, truth: torch.Tensor) -> list[torch.Tensor]:
    """Return PET slices ``(1, 1, H, W)``: one of every validation subject, or the truth alone."""
    if not folder:
        return [truth]
    slices = CachedSlices(Path(folder) / "validation", modalities=["pet_fdg"], split="validation")
    chosen = range(0, len(slices), max(1, len(slices) // 6))
    return [torch.as_tensor(slices[i]["image"])[None].float() for i in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200, help="points at which |J_Q| is taken")
    parser.add_argument("--power", type=int, default=100, help="power iterations a point")
    parser.add_argument("--side", type=int, default=128, help="side of the images for norms and pairs in pixels")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--ascent", type=int, default=50, help="steps of gradient ascent in float64")
    parser.add_argument("--ascended", type=int, default=8, help="pairs that ascent starts from")
    parser.add_argument("--iterations", type=int, default=500, help="ADMM iterations")
    parser.add_argument("--inner_tolerance", type=float, default=1e-6, help="of the data steps; the bundle has 1e-5")
    parser.add_argument("--starts", type=int, default=200, help="ADMM iterations from each start, 0 for none")
    parser.add_argument(
        "--costs", action="store_true", help="only: one data step by Newton and EM; peak memory of runs"
    )
    parser.add_argument("--level", type=float, help="instead of the bundle's setting")
    parser.add_argument("--variant", default="", help="of the bundle, with its own weights")
    parser.add_argument("--dataset_dir", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = find("pnp_admm_pet")
    workflow = load(bundle, arguments.variant or None, device="$torch.device('cpu')")
    on_path(bundle)
    import pnp_admm_pet_verification as verify
    from pnp_admm_pet_training import PreparePairs

    evaluator = workflow.evaluator
    batch = evaluator.data_loader.collate_fn([workflow.dataset[i] for i in (2,)])
    measurement, stack = evaluator.prepare_batch(batch, torch.device("cpu"), False)
    space = measurement.space
    truth = stack[:, space.channels("pet_fdg")]
    guides = [unit_range(stack[:, space.channels(n)]) for n in space.names if n != "pet_fdg"]
    settings = workflow.parser.get_parsed_content("tuning").of(measurement, "pet_fdg")
    level, gain = arguments.level or settings["level"], settings["gain"]
    scan = verify.prepare(measurement, level=level, gain=gain)

    def denoiser(control: str | None = None) -> torch.nn.Module:
        network = load_network(workflow, control=control, bundle=bundle)
        return verify.Beside(network, torch.cat(guides, 1)) if guides else network

    if arguments.costs:
        network = denoiser()
        data = measurement.operator["pet_fdg"], measurement.likelihood["pet_fdg"], measurement.y["pet_fdg"]
        c, rho = (t.reshape(-1, 1, 1, 1) for t in (scan.scale, scan.rho))
        with torch.no_grad():
            anchor = 2 * c * network(scan.start / c) - scan.start
        for title, step, bound in (("Newton", scan.step, 500), ("EM", EmissionStep(TorchEM(*data)), 500)):
            begin = time.process_time()
            _, count, kkt = step.proximal(anchor, rho / c**2, scan.start, iterations=bound, tolerance=1e-5)
            seconds = time.process_time() - begin
            print(f"first data step by {title}: {count} projections forth and back, {seconds:.2f} processor s, KKT "
                  f"residual {float(kkt):.1e}")  # fmt: skip
        for iterations in (20, 200):
            begin = time.process_time()
            plug_and_play(scan.step, network, scan.start, scale=scan.scale, rho=scan.rho, iterations=iterations)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            seconds = time.process_time() - begin
            print(f"{iterations} iterations: {seconds:.1f} processor s, peak of the process {peak:.0f} MiB")
        return
    images = clean_images(arguments.dataset_dir, truth)
    clean = torch.cat([gain * x / verify.mean_activity(x).reshape(-1, 1, 1, 1) for x in images])
    maker = PreparePairs(ImageSpace(["pet_fdg"], space.shape, space.spacing_mm))
    generator = torch.Generator().manual_seed(0)
    pairs = torch.cat([maker.pair(torch.cat([0 * x, x], 1), generator) for x in images])
    noisy = clean + pairs[:, 1:] - pairs[:, :1]
    # the control is of the network of the bundle itself
    for control in [None] if arguments.variant else [None, "unconstrained"]:
        name = control or arguments.variant or "model"
        network = denoiser(control)
        begin = time.process_time()
        result, ws, steps = verify.run(
            scan, network, iterations=arguments.iterations, inner_tolerance=arguments.inner_tolerance
        )
        seconds = time.process_time() - begin
        print(f"{name}: level {level:g}, gain {gain:g}, {len(steps)} iterations, {sum(result.inner)} projections forth "
              f"and back, {seconds:.1f} processor s")  # fmt: skip
        shown = ", ".join(f"{float(r):.1e}" for r in result.residuals[:: max(1, len(steps) // 6), 0])
        print(f"  |w+ - w| / |w|: {shown}; at the end {float(result.residuals[-1, 0]):.2e}")
        rounding = 1e-6 * float(torch.linalg.vector_norm(ws[-1][0]))
        above = [s for s in steps if s > rounding]
        print(f"  steps |w+ - w| that grew by more than 0.1 % to over 1e-6 |w|: "
              f"{verify.rising_steps(steps, floor=rounding)}; {len(above)} steps over that, slope of their second half "
              f"in a log-log plot {verify.decay_exponent(above):.2f}")  # fmt: skip
        print(f"  fixed-point error {float(result.error.max()):.2e}, KKT residual of the data steps: largest "
              f"{result.worst_kkt:.1e}, last {float(result.kkt.max()):.1e}")  # fmt: skip
        points = verify.points_of(clean, noisy, ws, arguments.points, side=arguments.side)
        found = verify.norms(network, points, iterations=arguments.power)
        quantiles = [float(found.max()), *(float(found.quantile(q)) for q in (0.95, 0.5))]
        print(f"  |J_Q| at {len(found)} points: max, 95 %, median {', '.join(f'{v:.4f}' for v in quantiles)}")
        ratios = verify.pair_ratios(network, points, arguments.pairs)
        print(f"  {len(ratios)} pairs of images of {len(images)} slices: largest ratio {float(ratios.max()):.5f}")
        along = torch.cat(ws[:: max(1, len(ws) // arguments.ascended)])[: arguments.ascended]
        along = verify.central(along, min(64, arguments.side))
        radius = 0.1 * float(along[0].norm())
        worst = [verify.worst_pairs(network, along, steps=arguments.ascent, radius=r).max() for r in (radius, None)]
        print(f"  ascent in float64: {float(worst[0]):.4f} within 10 %, {float(worst[1]):.4f} without a bound")
        if control is None and arguments.starts:
            gap = verify.spread_of_starts(scan, network, truth, iterations=arguments.starts)
            print(f"  OSEM, ones, noise as starts, {arguments.starts} iterations: {gap[0]:.3f} dB, {gap[1]:.2%} apart")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
