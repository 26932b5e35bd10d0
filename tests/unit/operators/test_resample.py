import numpy as np
import pytest
import scipy.ndimage
import torch

from multirecon.operators import check_operator
from multirecon.operators.resample import Resample
from multirecon.space import ImageSpace

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-12)]


def _affine(shape, spacing):
    return ImageSpace(["t1"], shape, spacing).affine


def _rotated(affine, degrees, axes=(0, 1)):
    angle = np.deg2rad(degrees)
    turn = torch.eye(4, dtype=torch.float64)
    i, j = axes
    turn[i, i] = turn[j, j] = np.cos(angle)
    turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
    return turn @ affine


def _images(shape, batch=2):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _cases():
    fine, coarse = _affine((9, 8, 12), (1.0, 1.0, 1.0)), _affine((5, 8, 4), (2.0, 1.0, 3.5))
    plane, thick = _affine((11, 9), (1.0, 1.5)), _affine((7, 6), (1.6, 2.5))
    permuted = coarse[:, [1, 0, 2, 3]] @ torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    permuted[:3, 3] = coarse[:3, 3] + coarse[:3, 0] * 4
    return {
        "3d aligned": ((2, 9, 8, 12), (5, 8, 4), fine, coarse, {}),
        "3d flipped and permuted": ((1, 9, 8, 12), (8, 5, 4), fine, permuted, {}),
        "3d oblique slices": (
            (2, 9, 8, 12),
            (5, 8, 4),
            fine,
            _rotated(coarse, 20, (1, 2)),
            {"profile": "gaussian", "thickness_mm": (0, 0, 3.5)},
        ),
        "2d aligned": ((1, 11, 9), (7, 6), plane, thick, {"profile": "gaussian"}),
        "2d rotated": ((3, 11, 9), (7, 6), plane, _rotated(thick, 30), {"thickness_mm": (0.0, 2.5)}),
    }


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("case", list(_cases()))
def test_battery(case, dtype, tolerance):
    source, target, source_affine, target_affine, options = _cases()[case]
    operator = Resample(source, target, source_affine=source_affine, target_affine=target_affine, **options).to(dtype)
    assert operator.separable == ("aligned" in case or "permuted" in case)
    check_operator(operator, tolerance=tolerance)
    again = Resample(**operator.arguments()).to(dtype)
    x = _images(source).to(dtype)
    assert torch.equal(again(x), operator(x))


@pytest.mark.parametrize("case", list(_cases()))
def test_sparse_and_separable_forms_agree_with_dense_interpolation(case):
    """Average map_coordinates over the same profile nodes."""
    source, target, source_affine, target_affine, options = _cases()[case]
    operator = Resample(source, target, source_affine=source_affine, target_affine=target_affine, **options).double()
    x = _images(source, batch=1)
    dims = len(target)
    index_map = np.linalg.solve(np.asarray(source_affine), np.asarray(target_affine))
    profiles = [operator._profile(axis) for axis in range(dims)]
    total = np.zeros(target)
    for nodes in np.ndindex(*[len(p[0]) for p in profiles]):
        weight = np.prod([float(p[1][n]) for p, n in zip(profiles, nodes, strict=True)])
        grid = np.meshgrid(*[np.arange(n) + float(p[0][k]) for n, p, k in zip(target, profiles, nodes, strict=True)],
                           indexing="ij")  # fmt: skip
        points = np.zeros((4, *target))
        points[:dims], points[3] = np.stack(grid), 1.0
        place = np.tensordot(index_map, points, 1)[:dims]
        padded = np.pad(x[0, 0].numpy(), 4)  # zero outside, linear to the zero
        total += weight * scipy.ndimage.map_coordinates(padded, place + 4, order=1, mode="constant")
    np.testing.assert_allclose(operator(x)[0, 0].numpy(), total, atol=1e-12)


def test_same_grid_is_the_identity():
    affine = _affine((6, 7), (1.5, 2.0))
    operator = Resample((2, 6, 7), (6, 7), source_affine=affine, target_affine=affine).double()
    assert operator.thickness_mm == (0.0, 0.0)
    x = _images((2, 6, 7))
    torch.testing.assert_close(operator(x), x, atol=1e-12, rtol=0)


@pytest.mark.parametrize("profile", ["box", "gaussian"])
@pytest.mark.parametrize("degrees", [0, 15])
def test_linear_ramps_are_reproduced_inside(profile, degrees):
    """Interpolation and symmetric profiles keep affine functions of the position in mm."""
    source_affine = _affine((24, 24, 24), (1.0, 1.0, 1.0))
    target_affine = _rotated(_affine((6, 6, 3), (1.0, 1.0, 4.0)), degrees, (0, 2))

    def ramp(affine, shape):
        index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
        mm = np.tensordot(np.asarray(affine)[:3, :3], index, 1) + np.asarray(affine)[:3, 3].reshape(3, 1, 1, 1)
        return torch.from_numpy(3 + 0.5 * mm[0] - 0.2 * mm[1] + 0.7 * mm[2])[None, None]

    operator = Resample((1, 24, 24, 24), (6, 6, 3), source_affine=source_affine, target_affine=target_affine,
                        profile=profile).double()  # fmt: skip
    assert operator.thickness_mm == (0.0, 0.0, 4.0)
    result = operator(ramp(source_affine, (24, 24, 24)))
    torch.testing.assert_close(result, ramp(target_affine, (6, 6, 3)), atol=1e-10, rtol=0)


def test_box_slice_of_a_step_is_its_partial_volume():
    """A slice 4 mm thick, a quarter of it beyond an edge, shows three quarters of the step."""
    x = torch.zeros(1, 1, 4, 4, 40)
    x[..., 20:] = 1.0  # voxel centres at i mm: the linear interpolant rises from 0 at 19 to 1 at 20
    target = torch.diag(torch.tensor([1.0, 1.0, 4.0, 1.0]))
    target[2, 3] = 20.5  # the slice covers 18.5 .. 22.5 mm, the edge is at 19.5
    operator = Resample((1, 4, 4, 40), (4, 4, 1), source_affine=torch.eye(4), target_affine=target)
    torch.testing.assert_close(operator(x), torch.full((1, 1, 4, 4, 1), 0.75), atol=2e-3, rtol=0)


def test_errors_name_the_argument():
    eye = torch.eye(4)
    with pytest.raises(ValueError, match="target_shape"):
        Resample((1, 4, 4), (4, 4, 4), source_affine=eye, target_affine=eye)
    with pytest.raises(ValueError, match="profile"):
        Resample((1, 4, 4), (4, 4), source_affine=eye, target_affine=eye, profile="sinc")
    with pytest.raises(ValueError, match="target_affine: expected the plane"):
        Resample((1, 4, 4), (4, 4), source_affine=eye, target_affine=_rotated(eye.double(), 10, (1, 2)))
    with pytest.raises(ValueError, match="source_affine: expected a finite"):
        Resample((1, 4, 4), (4, 4), source_affine=torch.zeros(4, 4), target_affine=eye)
    with pytest.raises(ValueError, match="thickness_mm"):
        Resample((1, 4, 4), (4, 4), source_affine=eye, target_affine=eye, thickness_mm=(1.0,))
