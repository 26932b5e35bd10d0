r"""An external EM program inside plug-and-play ADMM, by files: CASToR's ``castor-recon``, or any other.

All that is asked of the program is one plain MLEM iteration from a given image. De Pierro's anchored iteration, which
solves the data step of ADMM exactly, needs no more: with ``e = s x_em`` its update is a formula a voxel
(:func:`multirecon.solvers.em_engine.anchored_em`). Projector, resolution, corrections and data format stay the
program's; images travel as Interfile.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multirecon.data.io.interfile import read_interfile_image, write_interfile_image
from multirecon.data.io.volume import Volume

__all__ = ["ExternalEM", "castor_command"]

COUNTS_TOLERANCE = 1.02


def castor_command(
    datafile: str | os.PathLike[str],
    *,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    projector: str = "joseph",
    psf_fwhm_mm: float | None = None,
    axial_psf_fwhm_mm: float | None = None,
    sensitivity: str | os.PathLike[str] | None = None,
    threads: int = 1,
    program: str = "castor-recon",
    options: Sequence[str] = (),
) -> list[str]:
    """Return the command line of one MLEM iteration of ``castor-recon`` over all data, for :class:`ExternalEM`.

    Args:
        datafile: the header (``.Cdh``) of the events; attenuation, normalisation, scatter and randoms lie in them.
        shape: voxels ``(X, Y, Z)``.
        spacing_mm: voxel sizes in mm.
        projector: CASToR's name of the projector.
        psf_fwhm_mm: transaxial resolution (full width at half maximum) in mm, modelled in the image; None for none.
        axial_psf_fwhm_mm: axial resolution in mm; the transaxial one by default.
        sensitivity: header of the sensitivity image, needed for list-mode data.
        threads: number of threads.
        program: the executable.
        options: further options, as they are.

    Example:
        >>> print(" ".join(castor_command("scan.Cdh", shape=(128, 128, 1), spacing_mm=(2, 2, 3), psf_fwhm_mm=4.5)))
        castor-recon -df scan.Cdh -opti MLEM -it 1:1 -proj joseph -dim 128,128,1 -vox 2,2,3 -img {start} -fout {output}
        -th 1 -vb 1 -conv gaussian,4.5,4.5,3.5::psf
    """
    words = [program, "-df", os.fspath(datafile), "-opti", "MLEM", "-it", "1:1", "-proj", projector,
             "-dim", ",".join(str(int(n)) for n in shape), "-vox", ",".join(f"{s:g}" for s in spacing_mm),
             "-img", "{start}", "-fout", "{output}", "-th", str(threads), "-vb", "1"]  # fmt: skip
    if psf_fwhm_mm is not None:
        axial = psf_fwhm_mm if axial_psf_fwhm_mm is None else axial_psf_fwhm_mm
        words += ["-conv", f"gaussian,{psf_fwhm_mm:g},{axial:g},3.5::psf"]
    if sensitivity is not None:
        words += ["-sens", os.fspath(sensitivity)]
    return [*words, *options]


class ExternalEM:
    """An :class:`~multirecon.solvers.em_engine.EMEngine` that runs a program for every iteration.

    Args:
        command: the program and its arguments, without a shell; ``{start}`` and ``{output}`` stand for the header of
            the start image and for the prefix of the results.
        sensitivity: ``s = A^T 1`` as the program uses it, ``(1, 1, *shape)``, or the header of its Interfile image.
        affine: ``(4, 4)`` voxel-to-RAS matrix in mm of the images, its axes parallel to the patient's.
        result: name of the program's image, ``{output}`` being the prefix; the default is CASToR's.
        counts: number of counts in the data, or None. No image of an EM iteration explains more of them; a program
            that counts in other units than its sensitivity is found out by that.
        timeout_s: time that one iteration may take in s.

    Raises:
        ValueError: on a command without the two places, or an unfit sensitivity.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        sensitivity: Tensor | str | os.PathLike[str],
        affine: Tensor,
        result: str = "{output}_it1.hdr",
        counts: float | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        self.command = list(command)
        text = " ".join(self.command)
        if "{start}" not in text or "{output}" not in text:
            raise ValueError(f"command: expected the places {{start}} and {{output}}, got {text!r}")
        self.affine = affine.double().cpu()
        self.result, self.counts, self.timeout_s = result, counts, timeout_s
        s = sensitivity if isinstance(sensitivity, Tensor) else self._read(Path(sensitivity), None)
        if s.ndim not in (4, 5) or tuple(s.shape[:2]) != (1, 1) or bool((s < 0).any()):
            raise ValueError(f"sensitivity: expected non-negative values (1, 1, *shape), got shape {tuple(s.shape)}")
        self._sensitivity = s

    @property
    def sensitivity(self) -> Tensor:
        """``s = A^T 1``, ``(1, 1, *shape)``."""
        return self._sensitivity

    @torch.no_grad()
    def update(self, x: Tensor) -> Tensor:
        """Return the image ``(1, 1, *shape)`` after one iteration of the program from ``x``; ``x`` where ``s = 0``.

        Raises:
            ValueError: if the image does not fit, or the program fails, takes too long or returns no sound image.
        """
        if x.shape != self._sensitivity.shape:
            raise ValueError(f"x: expected one image {tuple(self._sensitivity.shape)}, got {tuple(x.shape)}")
        with tempfile.TemporaryDirectory(prefix="external-em-") as folder:
            start, output = Path(folder) / "start.hdr", Path(folder) / "image"
            values = x[0, 0].detach().cpu().float().reshape(*x.shape[2:4], -1).numpy()
            write_interfile_image(Volume(values, self.affine.numpy(), "1"), start)
            places = {"{start}": str(start), "{output}": str(output)}
            self._run([_fill(word, places) for word in self.command])
            found = self._read(Path(_fill(self.result, places)), x)
        if not bool(torch.isfinite(found).all()) or bool((found < 0).any()):
            raise ValueError(f"command: expected finite values >= 0, got a minimum of {float(found.min()):.4g}")
        explained = float((self._sensitivity * found).sum())
        if self.counts is not None and explained > COUNTS_TOLERANCE * self.counts:
            raise ValueError(f"sensitivity: expected an image that explains at most {self.counts:g} counts, "
                             f"got {explained:g}: not in the program's units")  # fmt: skip
        return torch.where(self._sensitivity > 0, found, x)

    def _run(self, words: list[str]) -> None:
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=self.timeout_s, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ValueError(f"command: expected {words[0]!r} to run, got {error}") from None
        if done.returncode != 0:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise ValueError(f"command: expected exit status 0 of {words[0]!r}, got {done.returncode}: {last[0][:200]}")

    def _read(self, header: Path, like: Tensor | None) -> Tensor:
        """Return an Interfile image as ``(1, 1, *shape)``; one slice becomes a 2D image where ``like`` is one."""
        if not header.is_file():
            raise ValueError(f"command: expected the image {header.name!r} from the program, got none")
        image = torch.from_numpy(np.ascontiguousarray(read_interfile_image(header).values))
        if image.shape[-1] == 1 and (like is None or like.ndim == 4):
            image = image[..., 0]
        image = image[None, None]
        if like is None:
            return image
        if image.shape != like.shape:
            raise ValueError(
                f"command: expected an image of shape {tuple(like.shape[2:])}, got {tuple(image.shape[2:])}"
            )
        return image.to(like)


def _fill(word: str, places: dict[str, str]) -> str:
    for place, value in places.items():
        word = word.replace(place, value)
    return word
