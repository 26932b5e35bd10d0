"""Contrast agent: the same for every slice of a subject, inside the head, thinner with every branch."""

import pytest
import torch

from multirecon.data.vessels import draw_contrast, grow_vessels

GRID = {"shape": (128, 128), "spacing_mm": (1.875, 1.875)}


@pytest.fixture(scope="module")
def subject():
    return draw_contrast("04", 0, share=1.0)


def test_a_subject_is_drawn_by_its_name_and_seed(subject):
    again, other = draw_contrast("04", 0, share=1.0), draw_contrast("04", 1, share=1.0)
    assert torch.equal(again.vessels.start, subject.vessels.start)
    assert again.blood_mg_ml == subject.blood_mg_ml
    assert other.vessels.start.shape != subject.vessels.start.shape or not torch.equal(
        other.vessels.start, subject.vessels.start
    )


def test_a_stated_share_of_subjects_is_given_any():
    given = [draw_contrast("x", seed, share=0.75, insert_mg_ml=[]) is not None for seed in range(40)]
    assert 0.55 < sum(given) / len(given) < 0.95
    assert all(draw_contrast("x", seed, share=0.0) is None for seed in range(10))


def test_vessels_are_smooth_connected_tubes_that_get_thinner(subject):
    tree = subject.vessels
    starts = {tuple(p.tolist()) for p in tree.start}
    ends = {tuple(p.tolist()) for p in tree.end}
    roots = [k for k, p in enumerate(tree.start) if tuple(p.tolist()) not in ends]
    assert len(roots) == 6
    direction = (tree.end - tree.start) / (tree.end - tree.start).norm(dim=1, keepdim=True)
    index = {tuple(p.tolist()): k for k, p in enumerate(tree.end)}
    bends = []
    for k, p in enumerate(tree.start):
        parent = index.get(tuple(p.tolist()))
        if parent is not None:
            assert tree.radius[k] <= tree.radius[parent]
            if tree.radius[k] == tree.radius[parent]:
                bends.append(float(direction[k] @ direction[parent]))
    assert sorted(bends)[len(bends) // 20] > 0.8  # within 37 degrees a step of 2 mm, 95 of 100
    assert len(starts & ends) > 100
    assert float(tree.radius.min()) >= 0.8
    assert float((tree.end / torch.tensor([62.0, 82.0, 60.0])).norm(dim=1).max()) < 1.05


def test_share_of_a_straight_tube_is_its_area():
    tree = grow_vessels(torch.Generator().manual_seed(0))
    one = type(tree)(torch.tensor([[3.0, 5.0, -50.0]]), torch.tensor([[3.0, 5.0, 50.0]]), torch.tensor([4.0]))
    share = one.share(0.0, thickness_mm=2.0, **GRID)
    assert float(share.sum()) * 1.875**2 == pytest.approx(torch.pi * 16, rel=0.05)
    slanted = type(tree)(torch.tensor([[-50.0, 5.0, 0.0]]), torch.tensor([[50.0, 5.0, 0.0]]), torch.tensor([2.0]))
    area = float(slanted.share(0.0, thickness_mm=0.2, **GRID).sum()) * 1.875**2
    assert area == pytest.approx(100 * 4 + torch.pi * 4, rel=0.05)
    assert float(one.share(60.0, thickness_mm=2.0, **GRID).max()) == 0.0


def test_slice_is_a_mixture_of_blood_and_inserts(subject):
    iodine, places = subject.draw(-10.0, thickness_mm=0.9375, **GRID)
    parts = [subject.blood_mg_ml * places["vessel"], *(c * places[f"insert_{c:g}"] for c in (2.0, 5.0, 10.0))]
    torch.testing.assert_close(iodine, 1e-3 * torch.stack(parts).sum(0))
    for c in (2.0, 5.0, 10.0):
        full = places[f"insert_{c:g}"] == 1
        assert int(full.sum()) > 15
        torch.testing.assert_close(iodine[full], torch.full_like(iodine[full], 1e-3 * c))
    assert float(places["vessel"].sum()) > 3


@pytest.mark.parametrize(
    ("change", "message"),
    [({"share": 1.5}, "share: expected 0 to 1, got 1.5"), ({"blood_mg_ml": [4.0, 2.0]}, "blood_mg_ml: expected"),
     ({"insert_mg_ml": [2.0, 2.0]}, "insert_mg_ml, insert_radius_mm: expected")],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        draw_contrast("04", 0, **change)
