"""List-mode data, oblique segments: what becomes of the counts, and lines worked out by hand."""

import struct

import numpy as np
import pytest
import raw_files as raw
import torch

from multirecon.conversion import Options, castor_measurement, convert, oblique_measurement
from multirecon.data.io import CastorEvents, Sinogram, read_castor, read_interfile_sinogram
from multirecon.data.io.castor import event_dtype, read_crystals
from multirecon.measurement import Measurement
from multirecon.operators import PETProjector3D
from multirecon.solvers import mlem

LIST = {"Scanner name": "TEST_RING", "Number of events": 3, "Data mode": "list-mode", "Data type": "PET",
        "Start time (s)": 0, "Duration (s)": 10, "Random correction flag": 1}  # fmt: skip
# time, rate of randoms, crystals: one line twice, in both directions
LIST_DATA = struct.pack("<IfIIIfIIIfII", 0, 0.5, 0, 4, 7, 0.7, 4, 0, 9, 0.1, 1, 5)
LINES = {"Scanner name": "TEST_RING", "Number of events": 3, "Data mode": "normalization", "Data type": "PET",
         "Attenuation correction flag": 1, "Normalization correction flag": 1}  # fmt: skip
# attenuation, normalisation, crystals; no time
LINES_DATA = struct.pack("<ffIIffIIffII", 2.0, 1.5, 0, 4, 1.0, 2.0, 1, 5, 4.0, 1.0, 2, 6)


def lines_file(folder, **changes):
    return raw.castor(folder, {**LINES, **changes}, LINES_DATA, name="lines.cdh", raw="lines.cdf")


def test_normalization_file_has_no_time(tmp_path):
    data = read_castor(lines_file(tmp_path))
    assert (data.mode, data.counts) == ("normalization", 0.0)
    assert data.events["attenuation"].tolist() == [2.0, 1.0, 4.0]
    assert data.events["normalisation"].tolist() == [1.5, 2.0, 1.0]
    assert data.events["crystals"][:, 0].tolist() == [[0, 4], [1, 5], [2, 6]]


def test_list_mode_is_counted_line_by_line(tmp_path):
    path = raw.castor(tmp_path, LIST, LIST_DATA)
    table = raw.crystal_table(tmp_path)
    notes = convert(path, tmp_path / "a.h5", Options(scanner=str(table), size=16))
    m = Measurement.load(tmp_path / "a.h5")
    # 8 crystals: 28 pairs, of which the 8 of neighbours touch no corner of the square inside the ring
    pairs = 28 if any("all 28 pairs" in n for n in notes) else 20
    assert any(f"all {pairs} pairs of crystals" in n for n in notes)
    counts, background = m.y["pet_fdg"].flatten(), m.likelihood["pet_fdg"].background.flatten()
    assert counts.numel() == pairs
    assert sorted(counts[counts > 0].tolist()) == [1.0, 2.0]
    assert background[counts == 2].tolist() == pytest.approx([6.0])  # (0.5 + 0.7) / 2 a second in 10 s
    assert background[counts == 1].tolist() == pytest.approx([1.0])
    assert float(background[counts == 0].abs().sum()) == 0


def test_lines_and_factors_come_from_the_normalization_file(tmp_path):
    path, table = raw.castor(tmp_path, LIST, LIST_DATA), raw.crystal_table(tmp_path)
    options = Options(scanner=str(table), size=32, normalization=str(lines_file(tmp_path)))
    convert(path, tmp_path / "a.h5", options)
    m = Measurement.load(tmp_path / "a.h5")
    assert m.y["pet_fdg"].flatten().tolist() == [2.0, 1.0, 0.0]
    # diameters: across the square of side sqrt(2) * 100 mm, 14.14 cm straight, 20 cm along its diagonal
    predicted = m.operator["pet_fdg"](torch.ones(1, 1, 32, 32)).flatten().tolist()
    assert predicted == pytest.approx([14.14 / 3.0, 20.0 / 2.0, 14.14 / 4.0], rel=0.03)


def test_likelihood_of_the_list_and_of_its_counts_agree_up_to_a_constant(tmp_path):
    """Log-likelihood of a list: the sum over its events of log mean, minus all means."""
    m = castor_measurement(
        read_castor(raw.castor(tmp_path, LIST, LIST_DATA)), read_crystals(raw.crystal_table(tmp_path)), size=16
    )
    A, background, y = m.operator["pet_fdg"], m.likelihood["pet_fdg"].background, m.y["pet_fdg"]
    values = []
    for seed in (0, 1):
        x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
        trues = A(x)
        listed = float((y * (trues + background).log())[y > 0].sum() - trues.sum())
        values.append(listed + float(m.data_fidelity(x)))
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_list_of_a_disc_is_reconstructed():
    """Events drawn from a disc of activity in a ring of 60 crystals: MLEM finds it back."""
    angles = 2 * np.pi * np.arange(60) / 60
    crystals = np.stack([150 * np.cos(angles), 150 * np.sin(angles), 0 * angles], 1)
    first, second = np.triu_indices(60, 1)
    start, end = crystals[first, :2], crystals[second, :2]
    length = np.hypot(*(end - start).T)
    along = ((40 - start[:, 0]) * (end - start)[:, 0] - start[:, 1] * (end - start)[:, 1]) / length
    distance = np.sqrt(np.maximum(((start - (40, 0)) ** 2).sum(1) - along**2, 0))
    chord = 2 * np.sqrt(np.maximum(30.0**2 - distance**2, 0))
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(first), 40_000, p=chord / chord.sum())
    events = np.zeros(len(chosen), event_dtype("list-mode", flags={}))
    events["crystals"][:, 0, 0], events["crystals"][:, 0, 1] = first[chosen], second[chosen]
    m = castor_measurement(CastorEvents("list-mode", events, "ring", 1.0), crystals, size=40)
    assert float(m.y["pet_fdg"].sum()) == len(chosen)
    x = mlem(m.operator["pet_fdg"], m.likelihood["pet_fdg"], m.y["pet_fdg"], iterations=20)[0, 0]
    u = (torch.arange(40) - 19.5) * m.space.spacing_mm[0]
    inside = ((u[:, None] - 40) ** 2 + u[None] ** 2) < 30**2
    assert float(x[inside].sum() / x.sum()) > 0.85
    centre = [float((x * c).sum() / x.sum()) for c in (u[:, None].expand_as(x), u[None].expand_as(x))]
    assert centre == pytest.approx([40, 0], abs=2)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"Attenuation correction flag": 1, "Random correction flag": 0}, {}, "normalization: expected a CASToR norm"),
        ({"TOF information flag": 1, "Scatter correction flag": 1, "Random correction flag": 0}, {}, "path: expected"),
    ],
)
def test_lists_that_cannot_be_counted(tmp_path, change, options, message):
    extra = 4 * (sum(v for k, v in change.items() if "flag" in k and v) - 1)
    data = b"".join(struct.pack("<If", 0, 2.0) + b"\0" * extra + struct.pack("<II", a, b)
                    for a, b in ((0, 4), (4, 0), (1, 5)))  # fmt: skip
    path, table = raw.castor(tmp_path, {**LIST, **change}, data), raw.crystal_table(tmp_path)
    with pytest.raises(ValueError, match=message):
        convert(path, tmp_path / "a.h5", Options(scanner=str(table), **options))
    assert not (tmp_path / "a.h5").exists()


# two rings, one view, three bins; ring difference +1: the ring in front minus the ring behind
SCANNER = {"rings": 2, "ring_spacing_mm": 6.0, "radius_mm": 60.0}
SEGMENTS = [{"planes": 1, "differences": [1, 1]}, {"planes": 2, "differences": [0, 0]},
            {"planes": 1, "differences": [-1, -1]}]  # fmt: skip


def oblique(values, **changes):
    return Sinogram(np.asarray(values, np.float32), np.zeros(1), 10.0, 6.0, (),
                    {"segments": SEGMENTS, **SCANNER, **changes})  # fmt: skip


def test_oblique_planes_are_sorted_and_their_lines_rise():
    m = oblique_measurement(oblique(np.arange(12).reshape(4, 1, 3)), size=4)
    A = m.operator["pet_fdg"]
    assert isinstance(A, PETProjector3D)
    assert m.space.shape == (4, 4, 3)
    assert m.space.spacing_mm[2] == 3.0
    # file: +1, direct, -1; projector: direct planes first, then +1, then -1
    assert m.y["pet_fdg"][0, 0, :, 0, 0].tolist() == [3, 6, 0, 9]
    # at the first view rays run along axis 1; a source behind (low axis 1) in the lowest slice lies on the line that
    # rises from ring 0 to ring 1 and not on the one that falls
    x = torch.zeros(1, 1, 4, 4, 3)
    x[..., 0, 0] = 1
    rising, falling = A(x)[0, 0, 2:, 0, 1].tolist()
    assert rising > 2 * falling
    x = x.flip(-1)
    rising, falling = A(x)[0, 0, 2:, 0, 1].tolist()
    assert falling > 2 * rising


def test_oblique_file_by_the_command(tmp_path):
    lines = [*raw.INTERFILE_SINOGRAM, "number of rings := 2", "Inner ring diameter (cm) := 12",
             "Average depth of interaction (cm) := 0.5"]  # fmt: skip
    path = raw.interfile_sinogram(tmp_path, lines)
    found = read_interfile_sinogram(path).metadata
    assert (found["rings"], found["radius_mm"], found["ring_spacing_mm"]) == (2, 65.0, 6.0)
    convert(path, tmp_path / "a.h5", Options(oblique=True, size=4))
    m = Measurement.load(tmp_path / "a.h5")
    assert m.y["pet_fdg"].shape == (1, 1, 4, 4, 5)
    assert float(m.y["pet_fdg"].sum()) == np.arange(80).sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rings": 0}, "oblique: expected a header with number of rings"),
        ({"rings": 3}, "oblique: expected 2 planes of ring difference 1, got 1"),
        ({"segments": SEGMENTS[:2]}, r"oblique: expected segments -n to n, got \[0, 1\]"),
        ({"segments": [{"planes": 4, "differences": [-1, 1]}]}, "oblique: expected segments of one ring difference"),
    ],
)
def test_oblique_segments_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        oblique_measurement(oblique(np.ones((4, 1, 3)), **changes), size=4)


def test_what_goes_with_oblique_counts_has_their_segments():
    counts = oblique(np.ones((4, 1, 3)))
    with pytest.raises(ValueError, match="background: expected the segments of the counts"):
        oblique_measurement(counts, background=Sinogram(np.ones((2, 1, 3), np.float32)), size=4)
    with pytest.raises(ValueError, match=r"attenuation: expected shape \(4, 4, 3\)"):
        oblique_measurement(counts, attenuation=np.ones((4, 4), np.float32), size=4)
    m = oblique_measurement(counts, efficiency=oblique(2 * np.ones((4, 1, 3))), background=counts, size=4)
    plain = oblique_measurement(counts, size=4)
    x = torch.ones(1, 1, 4, 4, 3)
    torch.testing.assert_close(m.operator["pet_fdg"](x), 2 * plain.operator["pet_fdg"](x))
