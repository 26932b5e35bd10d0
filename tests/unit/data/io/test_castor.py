"""CASToR files against bytes packed by hand in the documented order, and both ways."""

import struct

import numpy as np
import pytest
import raw_files

from multirecon.data.io import read_castor, write_castor
from multirecon.data.io.castor import event_dtype, read_crystals


def test_list_mode_fields_in_documented_order(tmp_path):
    data = read_castor(raw_files.castor_list(tmp_path))
    first, second = data.events
    assert (data.mode, data.scanner, data.duration_s, data.counts) == ("list-mode", "TEST_RING", 60.0, 2.0)
    names = ("time_ms", "attenuation", "scatter", "randoms", "normalisation", "tof_ps")
    assert [first[n] for n in names] == [100, 2.5, 0.125, 0.25, 1.5, -75.0]
    assert [second[n] for n in names] == [2000, 1.25, 0.5, 0.75, 0.875, 33.5]
    assert data.events["crystals"].tolist() == [[[7, 300]], [[301, 8]]]


def test_histogram_fields_in_documented_order(tmp_path):
    data = read_castor(raw_files.castor_histogram(tmp_path))
    first = data.events[0]
    assert [first[n] for n in ("time_ms", "attenuation", "randoms", "normalisation")] == [0, 2.0, 0.25, 1.0]
    assert (first["amount"].tolist(), first["scatter"].tolist()) == ([12.0], [0.5])
    assert data.events["crystals"].tolist() == [[[0, 4]], [[1, 5]]]
    assert data.counts == 15.0


def test_histogram_with_time_of_flight_and_several_lines(tmp_path):
    # time, (amount, scatter) of three bins, number of lines, two pairs of crystals
    record = struct.pack("<I6fH4I", 5, 1.0, 0.1, 2.0, 0.2, 3.0, 0.3, 2, 10, 20, 11, 21)
    header = {
        "Scanner name": "X",
        "Number of events": 1,
        "Data mode": "histogram",
        "Data type": "PET",
        "Duration (s)": 1,
        "Scatter correction flag": 1,
        "TOF information flag": 1,
        "Histo TOF number of bins": 3,
        "Maximum number of lines per event": 2,
    }
    data = read_castor(raw_files.castor(tmp_path, header, record))
    assert data.events["amount"][0].tolist() == [1.0, 2.0, 3.0]
    assert data.events["scatter"][0] == pytest.approx([0.1, 0.2, 0.3])
    assert data.events["lines"].tolist() == [2]
    assert data.events["crystals"][0].tolist() == [[10, 20], [11, 21]]


def test_plain_list_mode_with_event_kind(tmp_path):
    record = struct.pack("<IfBII", 9, 2.0, 3, 1, 2)
    header = {"Number of events": 1, "Data mode": "list", "Duration (s)": 1, "Attenuation correction flag": 1,
              "Event kind flag": 1}  # fmt: skip
    event = read_castor(raw_files.castor(tmp_path, header, record)).events[0]
    assert (event["attenuation"], event["kind"], event["crystals"].tolist()) == (2.0, 3, [[1, 2]])


@pytest.mark.parametrize("make", [raw_files.castor_list, raw_files.castor_histogram])
def test_what_is_written_is_what_was_read(tmp_path, make):
    path = make(tmp_path)
    data = read_castor(path)
    again = write_castor(data, tmp_path / "again.Cdh")
    assert (tmp_path / "again.Cdf").read_bytes() == (tmp_path / "scan.cdf").read_bytes()
    copy = read_castor(again)
    assert np.array_equal(copy.events, data.events)
    assert (copy.duration_s, copy.scanner, copy.mode) == (data.duration_s, data.scanner, data.mode)


@pytest.mark.parametrize(
    ("mode", "flags", "lines", "bins", "size"),
    [
        ("list-mode", (), 1, 1, 12),
        ("list-mode", ("attenuation", "scatter", "randoms", "normalisation", "tof"), 1, 1, 32),
        ("list-mode", ("kind",), 3, 1, 4 + 1 + 2 + 24),
        ("histogram", (), 1, 1, 16),
        ("histogram", ("attenuation", "randoms", "normalisation", "scatter"), 1, 5, 4 + 12 + 40 + 8),
    ],
)
def test_event_sizes(mode, flags, lines, bins, size):
    assert event_dtype(mode, flags=dict.fromkeys(flags, True), lines=lines, tof_bins=bins).itemsize == size


def test_crystal_table(tmp_path):
    crystals = read_crystals(raw_files.crystal_table(tmp_path))
    assert crystals.shape == (8, 3)
    np.testing.assert_allclose(np.hypot(crystals[:, 0], crystals[:, 1]), 100, rtol=1e-6)
    (tmp_path / "ring.lut").write_bytes(b"0" * 25)
    with pytest.raises(ValueError, match="multiple of 24 bytes"):
        read_crystals(tmp_path / "ring.lut")
