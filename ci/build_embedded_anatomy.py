"""Build the embedded head label map from the MNI152 template that ships inside nilearn.

Brain tissue comes from the template's grey and white matter maps and its T1 image; deep nuclei are cut out of the same
maps with ellipsoids in MNI space; cerebellum, brainstem and cerebrum are separated by a watershed on the T1 image. The
template is brain-extracted, so meninges, skull, scalp, orbits, sinuses and vessels are *invented* by morphology: they
are plausible, not measured. The result is deterministic.

    python ci/build_embedded_anatomy.py [OUTPUT.nii.gz]
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
OUTPUT = Path(__file__).parents[1] / "common/multirecon/data/embedded/mni152.nii.gz"
PAD = ((6, 6), (6, 20), (6, 12))  # voxels: room for scalp, nose and vertex around the template's box

# name: (left label, right label, centre (|x|, y, z), semi-axes, in-plane tilt in degrees, grey matter range); mm, MNI
NUCLEI: dict[str, tuple[int, int, tuple[float, ...], tuple[float, ...], float, tuple[float, float]]] = {
    "ventral_dc": (28, 60, (10, -14, -8), (9, 9, 6), 0, (0.0, 1.1)),
    "thalamus": (10, 49, (12.5, -18, 7), (11, 16, 11), -20, (0.22, 1.1)),
    "hippocampus_head": (17, 53, (26, -14, -20), (8, 9, 7), 0, (0.55, 1.1)),
    "hippocampus_tail": (17, 53, (28, -29, -9), (7, 11, 6), 15, (0.55, 1.1)),
    "amygdala": (18, 54, (23, -4, -20), (8, 7, 8), 0, (0.5, 1.1)),
    "putamen": (12, 51, (25.5, 2, 1), (8.5, 19, 13), 15, (0.42, 1.1)),
    "pallidum": (13, 52, (18.5, -4, -1), (6.5, 10, 7), 28, (0.12, 0.85)),
    "caudate_head": (11, 50, (13, 12, 8), (8, 13, 12), 10, (0.5, 1.1)),
    "caudate_body": (11, 50, (17, -4, 20), (6, 17, 7), 8, (0.45, 1.1)),
    "accumbens": (26, 58, (10, 11, -8), (5, 5, 4), 0, (0.5, 1.1)),
}
ARTERIES: list[list[tuple[float, float, float]]] = [
    [
        (12, 2, -34),
        (14, 4, -20),
        (26, 4, -17),
        (40, 2, -12),
        (47, -6, 0),
        (50, -16, 10),
    ],
    [(12, 4, -19), (3, 10, -15), (2, 30, -12), (2, 38, 2), (2, 28, 20), (2, 8, 30)],
    [(0, -20, -46), (0, -13, -30), (0, -12, -18), (8, -14, -15), (20, -26, -10), (16, -44, -2)],
]
VEINS: list[list[tuple[float, float, float]]] = [
    [(0, 40, 60), (0, 0, 80), (0, -40, 76), (0, -80, 50), (0, -100, 20), (0, -102, -12)],  # superior sagittal sinus
    [(0, -46, 8), (0, -62, 2), (0, -84, -6), (0, -102, -12)],  # straight sinus
    [(0, -102, -12), (30, -92, -18), (50, -66, -24), (50, -46, -38), (40, -40, -56)],  # transverse and sigmoid sinus
]


class Space:
    """Coordinates of the padded template grid in mm, and shapes drawn in it."""

    def __init__(self, shape: Sequence[int], affine: NDArray[np.float64]) -> None:
        self.x, self.y, self.z = (
            (np.arange(n) + affine[a, 3]).reshape([-1 if b == a else 1 for b in range(3)]).astype(np.float32)
            for a, n in enumerate(shape)
        )
        self.shape, self.affine = tuple(shape), affine

    def ellipsoid(
        self, centre: Sequence[float], axes: Sequence[float], tilt: float = 0.0, mirrored: bool = True
    ) -> Mask:
        """Ellipsoid at ``(|x|, y, z)``, both sides if ``mirrored``, tilted by ``tilt`` degrees in the axial plane."""
        x, y, z = (np.abs(self.x) if mirrored else self.x) - centre[0], self.y - centre[1], self.z - centre[2]
        c, s = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
        return ((c * x + s * y) / axes[0]) ** 2 + ((c * y - s * x) / axes[1]) ** 2 + (z / axes[2]) ** 2 < 1

    def tube(self, points: Sequence[Sequence[float]], radius: float) -> Mask:
        """Both-sided tube of the given radius around a polyline of ``(|x|, y, z)`` points."""
        steps = [np.linspace(a, b, 60)[:-1] for a, b in itertools.pairwise(points)]
        line = np.concatenate([*steps, np.asarray(points[-1:])])
        hit = np.ones(self.shape, bool)
        for sign in (-1, 1):
            index = np.rint(line * (sign, 1, 1) - self.affine[:3, 3]).astype(int)
            hit[tuple(index[((index >= 0) & (index < self.shape)).all(1)].T)] = False
        return np.asarray(ndimage.distance_transform_edt(hit) <= radius)


def load_template() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Return padded T1, grey and white matter maps in [0, 1] and the affine."""
    from nilearn import datasets

    folder = Path(datasets.__file__).parent / "data"
    images = [nib.load(folder / f"mni_icbm152_{k}_tal_nlin_sym_09a_converted.nii.gz") for k in ("t1", "gm", "wm")]
    affine = images[0].affine.astype(float).copy()
    affine[:3, 3] -= [p[0] for p in PAD]
    t1, grey, white = (np.pad(np.asarray(i.dataobj).astype(np.float32) / 255, PAD) for i in images)
    return t1, grey, white, affine


def smooth_noise(shape: Sequence[int], sigma: float, seed: int) -> NDArray[np.float32]:
    """Unit-variance smooth noise, made on a grid four times coarser."""
    coarse = np.random.default_rng(seed).standard_normal([n // 4 + 2 for n in shape])
    field = ndimage.zoom(ndimage.gaussian_filter(coarse, sigma / 4), 4, order=1)[tuple(slice(n) for n in shape)]
    return np.asarray(field / field.std(), np.float32)


def closing(mask: Mask, radius: float) -> Mask:
    """Morphological closing by a ball of ``radius`` voxels through distance transforms."""
    grown = ndimage.distance_transform_edt(~mask) <= radius
    return np.asarray(ndimage.distance_transform_edt(grown) > radius)


def brain_labels(s: Space, t1: NDArray, grey: NDArray, white: NDArray) -> NDArray[np.int16]:
    """Label brain tissue and the CSF inside the template's brain mask."""
    mask = ndimage.binary_fill_holes(t1 > 0)
    left = np.broadcast_to(s.x < 0, s.shape)
    # cerebrum (1), cerebellum (2), brainstem (3): flooding from seeds, dark CSF is the ridge between them
    seeds = np.where(mask, 0, -1).astype(np.int16)
    cerebrum = (
        np.broadcast_to(s.z > 12, s.shape)
        | s.ellipsoid((48, -12, -24), (12, 16, 10))
        | s.ellipsoid((20, -92, 2), (12, 8, 8))
        | s.ellipsoid((50, -52, -8), (8, 14, 7))
        | s.ellipsoid((24, -20, -16), (7, 12, 6))
        | s.ellipsoid((14, -70, 2), (6, 12, 5))
        | s.ellipsoid((28, -44, -8), (6, 8, 4))
        | np.broadcast_to((s.y > 0) & (s.z > -20), s.shape)
    )
    cerebellum = s.ellipsoid((26, -64, -38), (16, 16, 14)) | s.ellipsoid((0, -62, -26), (7, 12, 14))
    stem = s.ellipsoid((0, -28, -32), (11, 8, 12)) | s.ellipsoid((0, -42, -56), (6, 6, 14))
    stem |= s.ellipsoid((0, -28, -13), (10, 6, 5))
    for value, seed in ((1, cerebrum), (2, cerebellum), (3, stem)):
        seeds[seed & mask] = value
    cost = np.where(mask, 255 * (1 - ndimage.gaussian_filter(t1, 0.7)), 255).astype(np.uint8)
    part = ndimage.watershed_ift(cost, seeds)
    # the peduncles have no CSF border: a surface closes the brainstem
    axis_y = np.interp(s.z, [-70, -45, -30, -10], [-44, -38, -30, -27])
    near_axis = (s.x / 17) ** 2 + ((s.y - axis_y) / np.interp(s.z, [-70, -45, -30, -10], [9, 13, 15, 13])) ** 2 < 1
    part[(part == 3) & ~near_axis & (s.y < axis_y)] = 2
    part[(part == 3) & (s.z > -8)] = 1

    labels = np.zeros(s.shape, np.int16)
    csf = mask & ((1 - grey - white > 0.5) | (t1 < 0.56))
    # the template averages sulci away: darker-than-neighbourhood cortex is where they run
    ridge = t1 - ndimage.gaussian_filter(t1, 6) / np.maximum(ndimage.gaussian_filter(mask.astype(np.float32), 6), 1e-3)
    csf |= mask & (part == 1) & (grey > white) & (ridge < -0.115)
    csf |= mask & (part == 2) & (t1 < 0.52)
    is_white = white > np.where(part == 2, 0.42, 0.5)
    for value, (wm, gm) in {1: ((2, 41), (3, 42)), 2: ((7, 46), (8, 47)), 3: ((16, 16), (16, 16))}.items():
        for k, side in enumerate((left, ~left)):
            labels[mask & (part == value) & side & is_white] = wm[k]
            labels[mask & (part == value) & side & ~is_white] = gm[k]
    for low, high, centre, axes, tilt, (g0, g1) in NUCLEI.values():
        region = s.ellipsoid(centre, axes, tilt) & mask & (grey > g0) & (grey < g1) & (part != 2)
        region = ndimage.binary_opening(region)
        labels[region & left], labels[region & ~left] = low, high
    labels[csf & (labels != 16)] = 24
    labels[csf & (labels == 16) & (t1 < 0.5)] = 24
    # ventricles: CSF parts reached from inside, within the box of each ventricle
    inside = labels == 24
    for low, high, centre, axes in (
        (4, 43, (14, -10, 14), (40, 55, 30)),
        (5, 44, (34, -14, -16), (9, 24, 10)),
        (14, 14, (0, -12, 0), (5, 20, 14)),
        (15, 15, (0, -42, -32), (16, 11, 16)),
    ):
        start = s.ellipsoid(centre, np.asarray(axes) * 0.35) if low > 4 else s.ellipsoid((10, 2, 16), (8, 24, 10))
        box = inside & s.ellipsoid(centre, axes)
        if low == 4:
            box &= ~s.ellipsoid((0, -40, -4), (18, 22, 16)) & ~s.ellipsoid((0, 42, 10), (8, 16, 40))
            start |= s.ellipsoid((26, -44, 8), (5, 8, 6))
        found, _ = ndimage.label(box)
        keep = np.isin(found, np.setdiff1d(np.unique(found[start & box]), [0]))
        labels[keep & left], labels[keep & ~left] = low, high
    plexus = s.ellipsoid((25, -41, 10), (2.5, 5, 4)) & np.isin(labels, (4, 43))
    labels[plexus & left], labels[plexus & ~left] = 136, 163
    return labels


def head_labels(s: Space, brain: NDArray[np.int16]) -> NDArray[np.int16]:
    """Add meninges, vessels, skull, scalp, face and neck around the brain labels."""
    labels = brain.copy()
    hull = closing(brain > 0, 9)
    hull &= ~((s.z < -58) & ~ndimage.binary_dilation(brain > 0, iterations=3))
    smooth = ndimage.gaussian_filter(hull.astype(np.float32), 2) > 0.45
    d = ndimage.distance_transform_edt(~(smooth | (brain > 0))).astype(np.float32)
    top = 2.2 + 0.6 * smooth_noise(s.shape, 14, 1)
    labels[(d <= np.clip(top, 1.2, 4)) & (labels == 0)] = 24
    inner = labels > 0

    # vault: two tables with diploe, thinner at the temples, thicker behind
    shell = ndimage.distance_transform_edt(~inner).astype(np.float32)
    temple = np.exp(-(((np.abs(s.x) - 72) / 18) ** 2) - ((s.y - 5) / 40) ** 2 - ((s.z + 10) / 28) ** 2)
    behind = np.exp(-(((s.y + 115) / 35) ** 2))
    thick = np.clip((6.4 + 0.9 * smooth_noise(s.shape, 18, 2)) * (1 - 0.5 * temple) * (1 + 0.25 * behind), 2.4, 11)
    table = np.clip(0.27 * thick, 1.1, 2.2)
    bone = shell <= thick
    marrow = (shell > table) & (shell < thick - table)
    # outer surface of the head
    scalp = 5.5 + 0.6 * smooth_noise(s.shape, 25, 3) + 4 * temple
    head = shell <= thick + scalp
    head |= s.ellipsoid((0, 52, -50), (60, 48, 52)) | s.ellipsoid((0, 101, -46), (9, 13, 16))
    head |= s.ellipsoid((0, -34, -80), (60, 66, 58)) & np.broadcast_to(s.z < -36, s.shape)
    head |= s.ellipsoid((0, 20, -70), (64, 60, 44))
    head = ndimage.gaussian_filter(head.astype(np.float32), 3.0) > 0.5
    head |= shell <= thick + 3.5
    depth = ndimage.distance_transform_edt(head)
    outside = ~inner
    labels[outside & head] = 507
    labels[outside & head & (depth <= 2.6 + 0.3 * smooth_noise(s.shape, 20, 4))] = 511
    base = s.z > np.interp(s.y, [-120, -60, -30, 20, 60], [-66, -70, -66, -48, -36])
    labels[outside & bone & base & head] = 515
    labels[outside & bone & base & marrow & head] = 516

    # base and face: petrous bone and mastoid, orbits, sinuses, jaw
    free = outside & head & (depth > 5)
    for centre, axes, tilt in (
        ((34, -24, -44), (22, 9, 9), 25),
        ((54, -34, -46), (9, 13, 16), 0),
        ((0, 2, -52), (14, 12, 16), 0),
    ):
        block = s.ellipsoid(centre, axes, tilt) & free
        labels[block] = 516
        labels[block & ~ndimage.binary_erosion(block, iterations=2)] = 515
    cells = s.ellipsoid((54, -34, -46), (6, 9, 12)) & free & (smooth_noise(s.shape, 3, 5) > 0.5)
    labels[cells] = 0
    orbit = s.ellipsoid((31, 52, -36), (18, 26, 17)) & free & (s.y > 20)
    labels[ndimage.binary_dilation(orbit, iterations=2) & free & ~orbit & (s.y < 62)] = 515
    labels[orbit] = 507
    for front, back in (
        ((32, 60, -26), (12, 26, -32)),
        ((32, 60, -46), (12, 26, -38)),
        ((21, 60, -36), (11, 26, -35)),
        ((43, 58, -36), (14, 26, -35)),
    ):
        labels[s.tube([front, back], 1.8) & orbit] = 508
    labels[s.tube([(31, 56, -36), (12, 24, -34), (5, 8, -26)], 2.0) & outside & head] = 530
    labels[s.ellipsoid((32, 66, -36), (12, 12, 12)) & outside & head & (depth > 1)] = 506
    jaw = s.ellipsoid((0, 55, -76), (34, 34, 20)) & free
    labels[jaw & ~ndimage.binary_erosion(jaw, iterations=5)] = 516
    labels[jaw & ~ndimage.binary_erosion(jaw, iterations=1)] = 515
    cavities = (
        ((28, 50, -64), (13, 15, 11)),
        ((6, 56, -58), (4, 26, 15)),
        ((6, 19, -36), (6, 9, 7)),
        ((6, 46, -34), (4, 18, 8)),
        ((8, 77, -8), (10, 3.5, 9)),
        ((0, 12, -80), (11, 10, 26)),
    )
    for centre, axes in cavities:
        cavity = s.ellipsoid(centre, axes) & free
        lining = ndimage.binary_dilation(cavity, iterations=1) & free & ~cavity
        wall = ndimage.binary_dilation(cavity, iterations=2) & free & ~cavity & ~lining
        labels[wall & np.isin(labels, (507, 516))] = 515
        labels[lining & (labels != 0)] = 509
        labels[cavity] = 0

    soft = np.isin(labels, (24, 3, 42, 507, 515, 516))
    for line in ARTERIES:
        labels[s.tube(line, 1.5) & (soft & inner) & (labels != 515)] = 502
    for line in VEINS:
        labels[s.tube(line, 3.2) & soft & (shell <= 1.5)] = 514
    sagittal = (np.abs(s.x) < 3.5) & inner & (ndimage.distance_transform_edt(inner) <= 4) & ((s.z > 20) | (s.y < -70))
    labels[sagittal & (labels == 24) & (s.z > -14)] = 514
    cord = s.tube([(0, -46, -66), (0, -48, -90)], 6) & head
    labels[ndimage.binary_dilation(cord, iterations=4) & outside & head & (s.z < -62)] = 24
    labels[cord & outside] = 512
    return labels


def main() -> None:
    """Build the map and write it."""
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    t1, grey, white, affine = load_template()
    s = Space(t1.shape, affine)
    labels = head_labels(s, brain_labels(s, t1, grey, white))
    # one component of head, no loose specks
    found, count = ndimage.label(labels > 0)
    sizes = np.bincount(found.ravel(), minlength=count + 1)[1:]
    labels[(found > 0) & (found != 1 + int(np.argmax(sizes)))] = 0
    # labels above 255 are stored minus 300 (502..530 become 202..230): one byte a voxel compresses best
    coded = np.where(labels > 255, labels - 300, labels).astype(np.uint8)
    image = nib.Nifti1Image(coded, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"MNI152 head labels; codes 202..230 mean label + 300"
    output.parent.mkdir(parents=True, exist_ok=True)
    nib.openers.Opener.default_compresslevel = 9
    nib.save(image, output)
    print(f"{output}: {labels.shape}, {np.unique(labels).size} labels, {output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
