import pytest
import torch

from multirecon.blocks import Blocks
from multirecon.operators import BlockDiagonal, Diagonal, Identity, Zero, check_operator, dot_test
from multirecon.operators.base import LinearOperator
from multirecon.space import ImageSpace


def diagonal(seed=0, dtype=torch.float64):
    return Diagonal(torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype))


OPERATORS = {
    "identity": lambda: Identity((2, 4, 4), torch.float64),
    "diagonal": diagonal,
    "complex diagonal": lambda: diagonal(dtype=torch.complex128),
    "composed": lambda: diagonal(0) @ diagonal(1) @ Identity((2, 4, 4), torch.float64),
    "sum": lambda: diagonal(0) + diagonal(1),
    "scaled": lambda: -2.5 * diagonal(),
    "adjoint": lambda: diagonal(0, torch.complex128).H,
}


@pytest.mark.parametrize("name", OPERATORS)
def test_battery_double(name):
    check_operator(OPERATORS[name](), tolerance=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_battery_single(name):
    check_operator(OPERATORS[name]().float(), tolerance=1e-5)


def test_float_and_double_keep_complex_buffers():
    op = diagonal(dtype=torch.complex128).float()
    assert op.weight.dtype == torch.complex64
    assert op.domain_dtype == torch.complex64
    assert op.double().weight.dtype == torch.complex128


def test_adjoint_of_adjoint_is_the_operator():
    op = diagonal()
    assert op.H.H is op


def test_norm_is_the_largest_singular_value():
    op = diagonal()
    assert op.norm() == pytest.approx(float(op.weight.abs().max()), rel=1e-3)


def test_check_operator_finds_a_wrong_adjoint():
    class Wrong(Diagonal):
        def adjoint(self, y):
            return 1.001 * super().adjoint(y)

    with pytest.raises(AssertionError, match="dot error"):
        check_operator(Wrong(torch.ones(1, 3, 3)), tolerance=1e-5)


def test_check_operator_finds_a_wrong_gradient():
    class Detached(Diagonal):
        def forward(self, x):
            return super().forward(x) + (x - x.detach())

    with pytest.raises(AssertionError, match="gradient"):
        check_operator(Detached(torch.full((1, 3, 3), 2.0)), tolerance=1e-5)


def test_composition_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="range"):
        Identity((1, 4, 4)) @ Identity((1, 5, 5))


def test_shape_errors_name_expected_and_got():
    with pytest.raises(ValueError, match=r"expected shape \(B, 2, 4, 4\), got \(1, 2, 4, 5\)"):
        diagonal()(torch.zeros(1, 2, 4, 5))


def test_zero_operator():
    op = Zero((1, 3, 3), (2,))
    assert dot_test(op) == 0.0
    assert op(torch.ones(2, 1, 3, 3)).abs().max() == 0


def test_no_closed_form_says_so():
    with pytest.raises(NotImplementedError, match="least_squares"):
        LinearOperator((1, 2, 2), (3,)).pseudo_inverse(torch.zeros(1, 3))


class TestBlockDiagonal:
    space = ImageSpace(["t1", "ct", "pet_fdg"], (4, 4), (1.0, 1.0))

    def operator(self):
        weight = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.complex128)

        class RealDiagonal(Diagonal):
            def __init__(self):
                super().__init__(weight)
                self.domain_dtype = torch.float64

            def adjoint(self, y):
                return super().adjoint(y).real

            def gram(self, x):
                return self.adjoint(self(x))

        return BlockDiagonal(self.space, {"ct": Identity((1, 4, 4), torch.float64), "t1": RealDiagonal()})

    def test_adjoint_of_the_stack(self):
        a = self.operator()
        g = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, 4, 4, generator=g, dtype=torch.float64)
        y = a(torch.randn(2, 3, 4, 4, generator=g, dtype=torch.float64))
        assert torch.allclose(a(x).inner(y), (x * a.adjoint(y)).flatten(1).sum(1), rtol=1e-12)
        assert torch.allclose(a.gram(x), a.adjoint(a(x)))

    def test_missing_modality_gets_a_zero(self):
        a = self.operator()
        x = torch.ones(1, 3, 4, 4, dtype=torch.float64)
        assert a.adjoint(a(x))[:, 2].abs().max() == 0

    def test_restrict_and_clean(self):
        a = self.operator()
        assert a.is_clean("ct")
        assert not a.is_clean("t1")
        assert not a.is_clean("pet_fdg")
        assert a.restrict(["t1"]).names == ("t1",)

    def test_wrong_domain_is_refused(self):
        with pytest.raises(ValueError, match="expected domain"):
            BlockDiagonal(self.space, {"ct": Identity((1, 5, 5))})

    def test_unknown_block_names(self):
        with pytest.raises(ValueError, match="expected blocks"):
            self.operator().adjoint(Blocks({"ct": torch.zeros(1, 1, 4, 4)}))

    def test_no_blocks_at_all(self):
        empty = BlockDiagonal(self.space, {})
        assert len(empty(torch.zeros(2, 3, 4, 4))) == 0
        assert empty.norm() == 0.0
