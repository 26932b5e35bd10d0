import pytest
import torch

from multirecon.space import ImageSpace, Modality


def space(**kwargs):
    return ImageSpace([Modality("t1"), Modality("bins", channels=3), "ct"], (4, 6), (1.0, 2.0), **kwargs)


def test_channels_follow_modality_order():
    s = space()
    assert s.num_channels == 5
    assert s.channels("bins") == slice(1, 4)
    assert s.channel_index(["ct", "t1"]) == [4, 0]
    assert s.stack_shape == (5, 4, 6)


def test_default_affine_is_centred():
    s = space()
    corner = s.affine @ torch.tensor([0, 0, 0, 1.0], dtype=torch.float64)
    far = s.affine @ torch.tensor([3, 5, 0, 1.0], dtype=torch.float64)
    assert torch.allclose(corner[:2], -far[:2])


def test_round_trip_through_plain_values():
    s = space()
    again = ImageSpace(**s.to_dict())
    assert again.names == s.names
    assert again.same_grid(s)
    assert torch.equal(again.affine, s.affine)


def test_select_keeps_the_grid():
    sub = space().select(["ct"])
    assert sub.names == ("ct",)
    assert sub.same_grid(space())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["t1", "t1"], (4, 4), (1, 1)), "repeated name"),
        (([], (4, 4), (1, 1)), "at least one"),
        ((["t1"], (4,), (1,)), "shape"),
        ((["t1"], (4, 4), (1, 0)), "spacing_mm"),
        ((["t1"], (4, 4), (1, 1), torch.diag(torch.tensor([1.0, 0, 1, 1]))), "invertible"),
        ((["t1"], (4, 4), (1, 1), torch.zeros(3, 3)), "affine"),
        ((["t1"], (4, 4), (1, 1), 2 * torch.eye(4)), "last row"),
        ((["T1"], (4, 4), (1, 1)), "lower-case"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageSpace(*arguments)


def test_check_names_the_expected_shape():
    with pytest.raises(ValueError, match=r"expected shape \(B, 5, 4, 6\).*got \(1, 4, 4, 6\)"):
        space().check(torch.zeros(1, 4, 4, 6))


def test_unknown_modality():
    with pytest.raises(ValueError, match="expected one of"):
        space().channels("pet")
