"""The command ``multirecon tune``; imports wait for the call, so that help is quick."""

from __future__ import annotations

from pathlib import Path

__all__ = ["tune"]


def tune(
    *bundles: str,
    tasks: tuple[str, ...] = (),
    kinds: tuple[str, ...] = (),
    trials: int = 24,
    metric: str = "psnr",
    slices: int = 1,
    seed: int = 0,
    output: str = "",
    folder: str = "",
    device: str = "",
    progress: bool = True,
) -> None:
    """Tune the settings of bundles on validation anatomies; run it again to go on where it stopped.

    Args:
        bundles: NAME, NAME:VARIANT or folders; by default every bundle and variant that states what can be tuned.
        tasks: names or JSON files, separated by commas; by default one or more of every kind of data.
        kinds: kinds of data, such as pet/poisson, separated by commas; by default all that the tasks have.
        trials: trials for every kind of data, the same for every bundle.
        metric: what is maximised: psnr or ssim.
        slices: slices of every validation subject.
        seed: seed of the trials.
        output: folder for the settings and logs, one folder a bundle; by default they go into the bundles.
        folder: folder of the bundles; by default the setting MULTIRECON_BUNDLES, else ./bundles.
        device: device of the bundles, such as cpu or cuda:0; by default their own choice.
        progress: show the progress bar (--noprogress: do not).
    """
    from ..tasks import load
    from .commands import _device
    from .methods import select_methods
    from .tuning import tune as run
    from .tuning_data import REPRESENTATIVE, ValidationData

    place = _device(device)
    chosen = select_methods(bundles, folder or None)
    if not bundles:
        chosen = [m for m in chosen if m.bundle.metadata.get("multirecon", {}).get("tuning")]
    if not chosen:
        raise ValueError("bundles: expected one with ranges in multirecon.tuning of its metadata.json, got none")
    data = ValidationData([load(name) for name in dict.fromkeys(tasks or REPRESENTATIVE)], slices=slices)
    target = Path(output) if output else None
    for method, file, tuned in run(
        chosen,
        data,
        trials=trials,
        metric=metric,
        seed=seed,
        kinds=kinds,
        output=target,
        device=place,
        progress=progress,
    ):
        print(f"{method.name} ({metric}: default -> best)")
        for kind in tuned:
            print(f"  {kind}")
        print(f"  {file}")
