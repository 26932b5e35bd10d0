"""The comparisons of `bench_operators.py`: projectors, MR and wavelets against other libraries."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench_timing import Row, Settings, race, ratios, same
from torch import Tensor

from multirecon import operators as ops

# ---------------------------------------------------------------------------------------------------- 2D projectors

#: (width, batch): how many times slower the peers have to be, forward and adjoint
PROJECTOR_GOALS = {
    (256, 1): ({"deepinv": 20, "ASTRA": 8}, {"deepinv": 40, "ASTRA": 8}),
    (256, 16): ({"deepinv": 25, "ASTRA": 8}, {"deepinv": 60, "ASTRA": 8}),
}


def parallel(n: int, views: int, backend: str = "auto") -> ops.ParallelBeam:
    return ops.ParallelBeam((n, n), (10.0, 10.0), views=views, bins=round(1.42 * n), backend=backend)  # pixels of 1 cm


class Astra:
    """ASTRA's CPU projector with linear interpolation, one slice at a time."""

    def __init__(self, n: int, views: int) -> None:
        import astra

        self.astra = astra
        self.volume = astra.create_vol_geom(n, n)
        self.scan = astra.create_proj_geom("parallel", 1.0, round(1.42 * n), np.arange(views) * np.pi / views)
        self.projector = astra.create_projector("linear", self.scan, self.volume)
        self.x, self.y = astra.data2d.create("-vol", self.volume), astra.data2d.create("-sino", self.scan)
        self.runs = {}
        for kind, key in (("FP", "VolumeDataId"), ("BP", "ReconstructionDataId")):
            task = astra.astra_dict(kind)
            task |= {"ProjectorId": self.projector, "ProjectionDataId": self.y, key: self.x}
            self.runs[kind] = astra.algorithm.create(task)

    def forward(self, images: np.ndarray) -> np.ndarray:
        return np.stack([self._run("FP", self.x, self.y, image.T[::-1]) for image in images])

    def adjoint(self, data: np.ndarray) -> np.ndarray:
        return np.stack([self._run("BP", self.y, self.x, sinogram)[::-1].T for sinogram in data])

    def _run(self, kind: str, source: int, target: int, value: np.ndarray) -> np.ndarray:
        self.astra.data2d.store(source, np.ascontiguousarray(value))
        self.astra.algorithm.run(self.runs[kind])
        return self.astra.data2d.get(target)


def bench_projectors(s: Settings) -> list[Row]:
    """Parallel beam, one thread, batch 1 and 16, forward and adjoint."""
    import deepinv

    rows: list[Row] = []
    generator = torch.Generator().manual_seed(0)
    for n, views, batches in ((128, 180, (1, 16)), (256, 360, (1, 16))):
        A = parallel(n, views)
        theirs = deepinv.physics.Tomography(angles=views, img_width=n, circle=False, normalize=False)
        astra = None
        with suppress(ImportError):
            astra = Astra(n, views)
        for batch in batches:
            x = torch.rand(batch, 1, n, n, generator=generator)
            y, z = A(x), theirs.A(x)
            same(torch.linalg.vector_norm(y), torch.linalg.vector_norm(z), 0.05, "deepinv's projector (norms)")
            forward = {"ours": lambda A=A, x=x: A(x), "deepinv": lambda t=theirs, x=x: t.A(x)}
            adjoint = {"ours": lambda A=A, y=y: A.adjoint(y), "deepinv": lambda t=theirs, z=z: t.A_adjoint(z)}
            if astra is not None:
                images, data = x[:, 0].numpy(), y[:, 0].numpy()
                same(astra.forward(images), data, 1e-4, "ASTRA's forward projection")
                same(astra.adjoint(data), A.adjoint(y)[:, 0], 1e-4, "ASTRA's back projection")
                forward["ASTRA"] = lambda a=astra, v=images: a.forward(v)
                adjoint["ASTRA"] = lambda a=astra, v=data: a.adjoint(v)
            goals = PROJECTOR_GOALS.get((n, batch), ({"deepinv": None, "ASTRA": None},) * 2)
            with torch.no_grad():
                title = f"{n} x {n} x {views}, batch {batch}"
                rows += ratios(f"forward {title}", race(forward, s), goals[0])
                rows += ratios(f"adjoint {title}", race(adjoint, s), goals[1])
    return rows


def bench_matrix(s: Settings) -> list[Row]:
    """Bytes of the folded matrix, its streaming limit, peak memory."""
    A, full = parallel(256, 360), parallel(256, 360, "full")
    folded_bytes, full_bytes = A.matrix().nbytes, full.matrix().nbytes
    detail = f"{folded_bytes / 1e6:.1f} MB against {full_bytes / 1e6:.1f} MB"
    rows = [Row("matrix bytes, full / folded", full_bytes / folded_bytes, 7.5, True, detail=detail)]
    stream = torch.ones(128 * 2**20)  # 512 MB
    x, y = torch.rand(1, 1, 256, 256), torch.rand(1, 1, *A.geometry.size)
    with torch.no_grad():
        t = race({"stream": stream.sum, "forward": lambda: A(x), "adjoint": lambda: A.adjoint(y)}, s)
    speed = stream.numel() * 4 / t["stream"] / 1e6
    for name in ("forward", "adjoint"):
        limit = folded_bytes / speed / 1e6
        detail = f"{t[name]:.3g} ms; limit {limit:.3g} ms at {speed:.3g} GB/s"
        rows.append(
            Row(
                f"{name} 256 x 256 x 360, batch 1, over its streaming limit", t[name] / limit, 2.5, False, detail=detail
            )
        )
    for name, goal in (("ours", 0.25), ("deepinv", None)):
        command = [sys.executable, str(Path(__file__).with_name("bench_operators.py")), "--memory", name]
        peak = float(
            subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout.split()[-1]
        )
        if goal is None:
            rows[-1].detail = f"deepinv {peak:.3g} GB"
        else:
            rows.append(Row("peak memory of a forward and an adjoint, batch 16", peak, goal, False, unit="GB"))
    return rows


def peak_memory(name: str) -> float:
    """Return the growth of the process's peak memory over one forward and adjoint of batch 16, in GB."""
    x = torch.rand(16, 1, 256, 256)
    if name == "ours":
        A = parallel(256, 360)
        forward, adjoint = A.forward, A.adjoint
    else:
        import deepinv

        physics = deepinv.physics.Tomography(angles=360, img_width=256, circle=False, normalize=False)
        forward, adjoint = physics.A, physics.A_adjoint
    with torch.no_grad():
        forward(x[:1])  # builds the matrix
        _trim()
        with open("/proc/self/clear_refs", "w") as file:  # the peak starts again at the present use
            file.write("5")
        before = _peak()
        adjoint(forward(x))
    return (_peak() - before) / 2**20


def _trim() -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _peak() -> float:
    """Return the peak resident memory in kB."""
    with suppress(OSError):
        line = next(v for v in Path("/proc/self/status").read_text().splitlines() if v.startswith("VmHWM"))
        return float(line.split()[1])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


# ---------------------------------------------------------------------------------------------------- 3D projectors


def _joseph3d(
    library: ctypes.CDLL, starts: np.ndarray, ends: np.ndarray, image: np.ndarray, spacing: np.ndarray
) -> np.ndarray:
    """parallelproj's CPU forward projection (mm)."""
    array = lambda a, t=ctypes.c_float: a.ctypes.data_as(ctypes.POINTER(t))  # noqa: E731
    origin = (-(np.array(image.shape) - 1) / 2 * spacing).astype(np.float32)
    size, data = np.array(image.shape, np.int32), np.empty(len(starts), np.float32)
    voxel = spacing.astype(np.float32)
    library.joseph3d_fwd(array(starts), array(ends), array(image), array(origin), array(voxel), array(data),
                         ctypes.c_longlong(len(starts)), array(size, ctypes.c_int))  # fmt: skip
    return data


def bench_volumes(s: Settings) -> list[Row]:
    """Oblique PET and cone beam against parallelproj's CPU code."""
    if s.parallelproj is None:
        print("3D rows need parallelproj: left out")
        return []
    rows: list[Row] = []
    generator = torch.Generator().manual_seed(0)
    scanner = {"rings": 16, "ring_spacing_mm": 4.0, "radius_mm": 300.0, "max_difference": 8}
    P = ops.PETProjector3D((96, 96, 16), (2.0, 2.0, 4.0), views=96, bins=137, **scanner)
    x = torch.rand(1, 1, 96, 96, 16, generator=generator)
    y = P(x)[0, 0].numpy()
    e = np.stack([np.cos(P.angles), np.sin(P.angles), np.zeros(96)], -1)[:, None]
    n = np.stack([-np.sin(P.angles), np.cos(P.angles), np.zeros(96)], -1)[:, None]
    along = P.lines.positions[None, :, None]
    reach = np.sqrt(300.0**2 - along**2) * n
    pixels_first = x[0, 0].reshape(-1, 16, 1).contiguous()
    for difference in (1, 4, 8):
        chosen = [k for k, (a, b) in enumerate(P.planes) if abs(a - b) == difference]
        ends = []
        for sign, side in ((-1, 0), (1, 1)):
            height = [(P.planes[k][side] - 7.5) * 4.0 for k in chosen]
            points = [along * e + sign * reach + np.array([0, 0, h]) for h in height]
            ends.append(np.ascontiguousarray(np.stack(points).reshape(-1, 3), np.float32))
        theirs = partial(_joseph3d, s.parallelproj, *ends, x[0, 0].numpy(), np.array([2.0, 2.0, 4.0]))
        same(theirs() / 10, y[chosen], 1e-3, "parallelproj's oblique planes")
        planes = P.oblique[difference - 1]
        t = race({"ours": lambda p=planes: p.forward(pixels_first), "parallelproj": theirs}, s)
        rows += ratios(f"oblique PET 96 x 96 x 16, ring difference {difference}, forward", t, {"parallelproj": 25})
    for channels, goal in ((1, 1 / 3), (4, 1.5)):
        scan = {"views": 60, "rows": 96, "bins": 96, "source_mm": 300.0, "detector_mm": 200.0, "channels": channels}
        C = ops.ConeBeam((64,) * 3, (2.0,) * 3, **scan)
        x = torch.rand(1, channels, 64, 64, 64, generator=generator)
        one = partial(_joseph3d, s.parallelproj, *cone_rays(C), spacing=np.full(3, 2.0))

        def theirs(one: Callable[..., np.ndarray] = one, x: Tensor = x) -> list[np.ndarray]:
            return [one(image=v) for v in x[0].numpy()]

        same(np.stack(theirs()) / 10, C(x)[0], 1e-3, "parallelproj's cone beam")
        t = race({"ours": lambda C=C, x=x: C(x), "parallelproj": theirs}, s)
        rows += ratios(f"cone beam 64^3, 60 x 96 x 96 rays, {channels} channel(s), forward", t, {"parallelproj": goal})
    return rows


def cone_rays(C: ops.ConeBeam) -> tuple[np.ndarray, np.ndarray]:
    """Return start and end points of all rays in mm."""
    a = C.arguments()
    e = np.stack([np.cos(C.angles), np.sin(C.angles), np.zeros(len(C.angles))], -1)[:, None, None]
    n = np.stack([-np.sin(C.angles), np.cos(C.angles), np.zeros(len(C.angles))], -1)[:, None, None]
    u = (np.arange(a["bins"]) - (a["bins"] - 1) / 2)[:, None] * a["bin_spacing_mm"]
    v = (np.arange(a["rows"]) - (a["rows"] - 1) / 2)[:, None, None] * a["row_spacing_mm"] * np.array([0.0, 0.0, 1.0])
    ends = a["detector_mm"] * n + u * e + v
    starts = np.broadcast_to(-a["source_mm"] * n, ends.shape)
    return tuple(np.ascontiguousarray(p.reshape(-1, 3), np.float32) for p in (starts, ends))  # type: ignore[return-value]


# --------------------------------------------------------------------------------------------------- MR and wavelets


def bench_mr(s: Settings) -> list[Row]:
    """Eight-coil MR at 256 x 256."""
    import deepinv

    rows: list[Row] = []
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(8, 256, 256, generator=generator, dtype=torch.complex64)
    maps = maps / maps.abs().square().sum(0).sqrt()
    mask = torch.zeros(256, 256)
    mask[:, ::3] = 1
    A = ops.MaskedFourier(mask, maps, real_image=False)
    theirs = deepinv.physics.MultiCoilMRI(mask=mask[None, None], coil_maps=maps[None], img_size=(256, 256))
    sense = None
    with suppress(ImportError):
        from sigpy.mri.linop import Sense

        sense = Sense(maps.numpy(), weights=mask.numpy())
    for batch in (1, 4):
        x = torch.randn(batch, 1, 256, 256, generator=generator, dtype=torch.complex64)
        y = A(x)
        pair = torch.view_as_real(x[:, 0]).permute(0, 3, 1, 2).contiguous()
        z = theirs.A(pair)
        same(z.permute(0, 2, 3, 4, 1), torch.view_as_real(y), 1e-5, "deepinv's multi-coil MR")
        coils = (maps * x).contiguous()
        forward = {
            "ours": lambda x=x: A(x),
            "deepinv": lambda p=pair: theirs.A(p),
            "bare FFT": lambda c=coils: torch.fft.fft2(c),
        }
        adjoint = {"ours": lambda y=y: A.adjoint(y), "deepinv": lambda z=z: theirs.A_adjoint(z)}
        if sense is not None:
            images, data = list(x[:, 0].numpy()), list(y.numpy())
            same(np.stack([sense(v) for v in images]), y, 1e-5, "sigpy's multi-coil MR")
            forward["sigpy"] = lambda v=images: [sense(i) for i in v]
            adjoint["sigpy"] = lambda v=data: [sense.H(d) for d in v]
        goals = {"deepinv": 1.8, "sigpy": 1.8}
        with torch.no_grad():
            t = race(forward, s)
            rows += ratios(f"MR 256 x 256, 8 coils, batch {batch}, forward", t, goals)
            name = f"MR 256 x 256, 8 coils, batch {batch}, forward over the bare FFT"
            rows.append(Row(name, t["ours"] / t["bare FFT"], 2.5, False, detail=rows[-1].detail))
            rows += ratios(f"MR 256 x 256, 8 coils, batch {batch}, adjoint", race(adjoint, s), goals)
    return rows


def bench_wavelets(s: Settings) -> list[Row]:
    """Haar against PyWavelets."""
    import pywt

    rows: list[Row] = []
    for batch, spatial in ((1, (256, 256)), (16, (256, 256)), (1, (64, 64, 64))):
        W = ops.Haar((1, *spatial))
        x = torch.rand(batch, 1, *spatial, generator=torch.Generator().manual_seed(0))
        image, axes = x.numpy(), tuple(range(2, 2 + len(spatial)))
        bands = pywt.dwtn(image, "haar", mode="periodization", axes=axes)
        same(np.stack([bands[k] for k in sorted(bands)], 2)[:, 0], W(x), 1e-5, "PyWavelets' Haar")
        theirs = partial(pywt.dwtn, image, "haar", mode="periodization", axes=axes)
        candidates = {"ours": partial(W, x), "PyWavelets": theirs}
        size = " x ".join(map(str, spatial))
        with torch.no_grad():
            rows += ratios(f"Haar {size}, batch {batch}", race(candidates, s), {"PyWavelets": 1.5})
    return rows
