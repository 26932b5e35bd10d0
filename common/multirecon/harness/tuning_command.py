"""The command ``multirecon tune``; imports wait for the call, so that help is quick."""

from __future__ import annotations

from pathlib import Path

__all__ = ["tune"]


def tune(
    *bundles: str,
    tasks: tuple[str, ...] = (),
    trials: int = 24,
    metric: str = "psnr",
    slices: int = 2,
    seed: int = 0,
    output: str = "",
    folder: str = "",
    device: str = "",
    progress: bool = True,
) -> None:
    """Tune the settings of bundles on validation anatomies; run it again to go on where it stopped.

    Args:
        bundles: names or folders; every bundle that states what can be tuned by default.
        tasks: names or JSON files, separated by commas; by default one or more of every kind of data.
        trials: trials for every kind of data, the same for every bundle.
        metric: what is maximised: psnr or ssim.
        slices: slices of every validation subject.
        seed: seed of the trials.
        output: folder for NAME/tuning.json and NAME/tuning.csv; by default they go into the bundles.
        folder: folder of the bundles; by default the setting MULTIRECON_BUNDLES, else ./bundles.
        device: device of the bundles, such as cpu or cuda:0; by default their own choice.
        progress: show the progress bar (--noprogress: do not).
    """
    from ..bundle.folder import discover, find
    from ..tasks import load
    from .commands import _device
    from .tuning import REPRESENTATIVE, ValidationData
    from .tuning import tune as run

    place = _device(device)
    chosen = [find(name, folder or None) for name in dict.fromkeys(bundles)]
    if not chosen:
        chosen = [b for b in discover(folder or None) if b.metadata.get("multirecon", {}).get("tuning")]
    if not chosen:
        raise ValueError("bundles: expected one with ranges in multirecon.tuning of its metadata.json, got none")
    data = ValidationData([load(name) for name in dict.fromkeys(tasks or REPRESENTATIVE)], slices=slices)
    target = Path(output) if output else None
    for bundle, file, kinds in run(
        chosen, data, trials=trials, metric=metric, seed=seed, output=target, device=place, progress=progress
    ):
        print(f"{bundle.name} ({metric}: default -> best)")
        for kind in kinds:
            print(f"  {kind}")
        print(f"  {file}")
