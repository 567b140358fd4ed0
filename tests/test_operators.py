"""What each operator class promises beyond the laws: symmetry, counting, promotion, and what it refuses."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor

from cases import close, gaussian, symmetric_with_spectrum
from eigenscope.errors import InputError
from eigenscope.operators.algebra import Block, Gram, Product, Scaled, Sum
from eigenscope.operators.arrays import Dense, LowRank, Sparse, as_operator
from eigenscope.operators.base import LinearOperator


def test_composites_count_on_their_operands() -> None:
    A, B = Dense(gaussian(4, 4, 40)), Dense(gaussian(4, 4, 41))
    X = gaussian(4, 5, 42)
    for composite in (A + B, A @ B, (2.0 * A) @ B, Block(A @ B, slice(1, 3)), -(B @ (A - B))):
        before = A.products, B.products
        width = composite.shape[1]
        composite @ X[:width]
        assert (A.products - before[0], composite.products) == (5, 5)
        assert B.products > before[1]
    gram = Gram(A)
    before_gram = A.products
    gram @ X
    assert (A.products - before_gram, gram.adjoint.products, gram.products) == (5, 5, 5)


def test_operands_that_do_not_fit_are_refused_by_name() -> None:
    A = Dense(torch.zeros(3, 4))
    with pytest.raises(InputError, match=r"Dense\(3×4, float32, cpu\) \+ Dense\(4×3, float32, cpu\)"):
        A + A.T
    with pytest.raises(InputError, match=r"Dense\(3×4.*@ Dense\(3×4.*4 columns do not fit 3 rows"):
        A @ A
    double = Dense(torch.zeros(3, 4, dtype=torch.float64))
    for combine in (lambda: A + double, lambda: A - double, lambda: A.T @ double):
        with pytest.raises(InputError, match=r"float32.*float64"):
            combine()
    elsewhere = _Elsewhere((3, 4), torch.float32, "meta")
    for combine in (lambda: A + elsewhere, lambda: A.T @ elsewhere):
        with pytest.raises(InputError, match=r"cpu.*meta"):
            combine()


class _Elsewhere(LinearOperator):
    """An operator on another device, never multiplied."""

    def _matmat(self, X: Tensor) -> Tensor:
        raise NotImplementedError

    def _adjoint(self) -> LinearOperator:
        raise NotImplementedError


def test_symmetry_of_composites() -> None:
    S = Dense(symmetric_with_spectrum(torch.tensor([2.0, -1.0, 0.5]), 50, torch.complex128), symmetric=True)
    A = Dense(gaussian(3, 3, 51, torch.complex128))
    assert Sum(S, S.gram()).symmetric
    assert not Sum(S, A).symmetric
    assert Scaled(S, -2).symmetric
    assert Scaled(S, -2 + 0j).symmetric
    assert not Scaled(S, 2j).symmetric
    assert not Product(S, S).symmetric
    assert Gram(A).symmetric
    first, last = torch.tensor([0, 1]), slice(1, 3)
    assert Block(S, slice(0, 2), first).symmetric
    assert Block(S, slice(-2, None), last).symmetric
    assert not Block(S, first, last).symmetric
    assert not Block(S, first, first.flip(0)).symmetric
    assert not Block(A, first, first).symmetric


@pytest.mark.parametrize("factor", [3, -0.25, np.float32(2.0), np.float64(2.0), np.int64(-2), Fraction(1, 4), True])
def test_factors_of_every_numeric_type(factor: float) -> None:
    A = Dense(gaussian(3, 2, 52, torch.float32))
    X = gaussian(2, 2, 53, torch.float32)
    for scaled in (A * factor, factor * A):
        assert close(scaled @ X, float(factor) * (A.matrix @ X))


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (2j, "complex factor on a real operator"),
        (np.complex64(1.0), "complex factor on a real operator"),
        (float("nan"), "becomes nan in torch.float32"),
        (float("-inf"), "becomes -inf in torch.float32"),
        (1e39, "becomes inf in torch.float32"),
        (1e-50, "becomes 0.0 in torch.float32"),
        (10**400, "exceeds float64"),
        ("2", "the factor is a str"),
        (torch.tensor(2.0), "the factor is a Tensor.*item"),
        (Dense(torch.eye(2)), "Compose operators with @"),
    ],
    ids=str,
)
def test_factors_that_are_refused(factor: complex, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Dense(torch.ones(2, 2)) * factor


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (torch.tensor([0, 3]), "1 positions lie outside, the first is 3; expected 0…2"),
        (torch.tensor([-1]), "the first is -1"),
        (torch.tensor([1, 1]), "2 positions, only 1 of them distinct"),
        (torch.tensor([True, False, True]), "1-D torch.bool tensor.*mask.nonzero"),
        (torch.tensor([[0]]), "2-D torch.int64"),
        ([0, 1], "selected by a list"),
        (slice(0.5, 2), "does not slice"),
        (slice(0, 2, 0), "does not slice"),
    ],
    ids=str,
)
def test_selections_that_are_refused(selection: slice, message: str) -> None:
    A = Dense(torch.zeros(3, 3))
    with pytest.raises(InputError, match="rows of.*" + message):
        Block(A, rows=selection)
    with pytest.raises(InputError, match="columns of.*" + message):
        Block(A, cols=selection)


def test_selections_follow_python_and_are_not_aliased() -> None:
    A = Dense(gaussian(5, 6, 54))
    for selection in (slice(-2, None), slice(1, 99), slice(4, 1), slice(None, None, -1), slice(None, None, 3)):
        expected = torch.from_numpy(A.matrix.numpy()[selection].copy())
        assert torch.equal(Block(A, rows=selection).to_dense(), expected)
    turned = torch.arange(5, -1, -1)
    assert torch.equal(Block(A, cols=turned).to_dense(), A.matrix[:, turned])
    positions = torch.tensor([4, 1])
    block = Block(A, cols=positions)
    positions[0] = 0
    assert torch.equal(block.to_dense(), A.matrix[:, [4, 1]])


def test_symmetry_claims_are_verified_at_every_scale() -> None:
    S = symmetric_with_spectrum(torch.tensor([1.0, -2.0, 3.0]), 55)
    for scale in (1e-200, 1e-12, 1.0, 1e12, 1e200):
        exact, wrong = scale * S, scale * S
        wrong[0, 1] += 1e-10 * scale
        rounded = exact.clone()
        rounded[0, 1] *= 1 + 4e-16
        for good in (exact, rounded):
            assert Dense(good, symmetric=True).symmetric
            assert Sparse(scipy.sparse.csr_array(good.numpy()), symmetric=True).symmetric
        with pytest.raises(InputError, match="claimed symmetric, but max"):
            Dense(wrong, symmetric=True)
        with pytest.raises(InputError, match="claimed symmetric, but max"):
            Sparse(scipy.sparse.csr_array(wrong.numpy()), symmetric=True)
    with pytest.raises(InputError, match="nan"):
        Dense(torch.full((2, 2), float("nan")), symmetric=True)
    with pytest.raises(InputError, match="claimed symmetric"):
        Dense(torch.eye(2, dtype=torch.complex64) * 1j, symmetric=True)
    with pytest.raises(InputError, match="2×3 map cannot be symmetric"):
        Dense(torch.ones(2, 3), symmetric=True)


def test_low_rank_symmetry_is_deduced() -> None:
    L, R = gaussian(4, 2, 56, torch.complex64), gaussian(4, 2, 57, torch.complex64)
    real, turned = torch.tensor([1.0, -2.0]), torch.tensor([1.0 + 1.0j, 2.0])
    assert LowRank(L, L).symmetric
    assert LowRank(L, L.clone(), real).symmetric
    assert not LowRank(L, L, turned).symmetric
    assert not LowRank(L, R, real).symmetric


def test_low_rank_factors_that_do_not_fit_are_refused() -> None:
    L, R = torch.zeros(4, 2), torch.zeros(3, 2)
    for build, message in (
        (lambda: LowRank(L, torch.zeros(3, 1)), "ranks 2 and 1 differ"),
        (lambda: LowRank(L, R.double()), "float32.*float64.*one dtype"),
        (lambda: LowRank(L, R, torch.zeros(3)), r"core of shape \(3,\); expected \(2,\)"),
        (lambda: LowRank(L, R, torch.zeros(2, dtype=torch.complex64)), "core.*complex64"),
        (lambda: LowRank(L, R[0]), r"1-D, of shape \(2,\)"),
        (lambda: LowRank(L.half(), R.half()), "float16"),
    ):
        with pytest.raises(InputError, match=message):
            build()
    assert LowRank(torch.zeros(4, 0), torch.zeros(3, 0)).to_dense().shape == (4, 3)


def test_sparse_with_repeated_and_unsorted_entries_is_not_changed() -> None:
    data, indices, indptr = np.array([2.0, 1.0, 3.0, 4.0]), np.array([1, 0, 1, 0]), np.array([0, 3, 4])
    matrix = scipy.sparse.csr_array((data, indices, indptr), shape=(2, 2))
    matrix.data[3] = 5.0
    for symmetric in (False, True):
        operator = Sparse(matrix, symmetric=symmetric)
        assert operator.to_dense().tolist() == [[1.0, 5.0], [5.0, 0.0]]
        assert operator.T.to_dense().tolist() == [[1.0, 5.0], [5.0, 0.0]]
    assert as_operator(matrix).to_dense().tolist() == [[1.0, 5.0], [5.0, 0.0]]
    assert (matrix.data.tolist(), matrix.indices.tolist()) == ([2.0, 1.0, 3.0, 5.0], [1, 0, 1, 0])


def test_blocks_that_torch_negates_lazily() -> None:
    X = gaussian(4, 3, 66, torch.complex128).conj().imag
    assert X.is_neg()
    matrix = gaussian(5, 4, 67)
    for operator in (Dense(matrix), Sparse(scipy.sparse.csr_array(matrix.numpy()))):
        assert close(operator @ X, matrix @ X.resolve_neg())


def test_dense_refuses_what_it_cannot_multiply() -> None:
    for matrix, message in (
        (torch.zeros(3), r"1-D, of shape \(3,\)"),
        (torch.zeros(2, 3, 4), "3-D"),
        (torch.zeros(2, 2, dtype=torch.bfloat16), "bfloat16"),
        (torch.zeros(2, 2, dtype=torch.int64), "int64"),
        (torch.zeros(2, 2, device="meta"), "meta"),
        (np.zeros((2, 2)), "ndarray"),
    ):
        with pytest.raises(InputError, match=message):
            Dense(matrix)


def test_as_operator_keeps_operators_and_shares_memory() -> None:
    operator = Dense(gaussian(3, 2, 60))
    assert as_operator(operator) is operator
    tensor, array = gaussian(3, 2, 61), gaussian(3, 2, 62).numpy()
    sparse = scipy.sparse.csr_matrix(array)
    for matrix, twin in ((tensor, as_operator(tensor)), (array, as_operator(array))):
        matrix[0, 0] = 7.0
        assert float(twin.to_dense()[0, 0]) == 7.0
    assert isinstance(as_operator(sparse), Sparse)
    parameter = torch.nn.Parameter(gaussian(3, 2, 63))
    assert not as_operator(parameter).to_dense().requires_grad
    assert parameter.requires_grad


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        *((getattr(torch, f"{sign}int{bits}"), torch.float64) for sign in ("", "u") for bits in (8, 16, 32, 64)),
        (torch.bool, torch.float64),
        *((dtype, torch.float32) for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)),
        *((dtype, dtype) for dtype in (torch.float32, torch.float64, torch.complex64, torch.complex128)),
    ],
    ids=str,
)
def test_tensors_are_promoted_without_loss(stored: torch.dtype, computed: torch.dtype) -> None:
    matrix = torch.tensor([[0.0, 1.0, 3.0], [12.0, 96.0, 1.0]], dtype=torch.float64).to(stored)
    operator = as_operator(matrix)
    assert operator.dtype == computed
    assert torch.equal(operator.to_dense(), matrix.to(computed))
    assert matrix.dtype == stored


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        ("bool", torch.float64),
        ("u1", torch.float64),
        (">i4", torch.float64),
        ("u8", torch.float64),
        ("f2", torch.float32),
        ("f4", torch.float32),
        (">f4", torch.float32),
        (">f8", torch.float64),
        ("c8", torch.complex64),
        (">c16", torch.complex128),
    ],
)
def test_arrays_and_sparse_matrices_are_promoted_without_loss(stored: str, computed: torch.dtype) -> None:
    array = np.array([[0, 1, 3], [12, 96, 1]]).astype(stored)
    expected = torch.from_numpy(array.astype(np.complex128)).to(torch.complex128)
    native = array.astype(array.dtype.newbyteorder("="))
    matrices = [array] if stored == "f2" else [array, scipy.sparse.csc_matrix(native), scipy.sparse.dok_array(native)]
    for matrix in matrices:
        operator = as_operator(matrix)
        assert operator.dtype == computed
        assert torch.equal(operator.to_dense().to(torch.complex128), expected)


def test_arrays_in_any_layout() -> None:
    base = gaussian(6, 8, 64).numpy()
    frozen, record = base.copy(), np.zeros((3, 2), dtype=[("tag", "i1"), ("value", "f8")])
    frozen.flags.writeable = False
    record["value"] = base[:3, :2]
    views = (base.T, base[::-1, ::-2], base[:1][::-1], base[::2, 1:], base[:0], base.view(np.matrix))
    for array in (*views, frozen, np.broadcast_to(base[0], (3, 8)), record["value"], record["value"][:1, :1]):
        given = np.array(array)
        operator = as_operator(array)
        assert np.array_equal(operator.to_dense().numpy(), given)
        assert np.array_equal(array, given)


def test_entries_that_are_not_finite_are_counted_and_placed() -> None:
    for value, shown in ((float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "-inf")):
        matrix = gaussian(4, 5, 65)
        matrix[2, 3] = matrix[3, 0] = value
        message = rf"2 of 20 entries are NaN or infinite, the first \({shown}\) at row 2, column 3 from 0"
        for bad in (matrix, matrix.to(torch.bfloat16), matrix.numpy(), matrix.numpy().astype("f2")):
            with pytest.raises(InputError, match=message):
                as_operator(bad)
        for kind in (scipy.sparse.csr_array, scipy.sparse.csc_matrix, scipy.sparse.coo_array):
            with pytest.raises(InputError, match=message):
                as_operator(kind(matrix.numpy()))
        turned = torch.complex(torch.zeros_like(matrix), matrix)
        with pytest.raises(InputError, match=r"2 of 20 entries .* row 2, column 3"):
            as_operator(turned)
        with pytest.raises(InputError, match=r"2 of 20 entries .* row 0, column 3"):
            as_operator(turned.mH)
    large = torch.full((2, 2), torch.finfo(torch.float64).max, dtype=torch.float64)
    assert as_operator(large).shape == (2, 2)


def test_as_operator_refuses_what_is_not_a_matrix_of_numbers() -> None:
    ones = torch.ones(2, 2)
    for matrix, message in (
        ([[1.0]], r"a list; expected .*numpy\.asarray"),
        (torch.ones(3), r"1-D, of shape \(3,\)"),
        (np.ones((2, 3, 4)), r"3-D, of shape \(2, 3, 4\)"),
        (scipy.sparse.coo_array(np.ones(3)), "1-D"),
        (np.array([["a"]]), "<U1"),
        (np.array([[None]]), "object"),
        (np.ma.masked_array(np.ones((2, 2)), mask=np.eye(2)), "masked"),
        (ones.to_sparse_coo(), r"sparse_coo tensor.*SciPy"),
        (torch.ones(2, 2, device="meta"), "meta tensor"),
        (torch.zeros(2, 2, dtype=torch.uint8).view(torch.bits8), "bits8.*cannot convert"),
    ):
        with pytest.raises(InputError, match=message):
            as_operator(matrix)
    with pytest.raises(InputError, match=r"a Tensor; expected|is a Tensor"):
        Sparse(ones)
    with pytest.raises(InputError, match="int64"):
        Sparse(scipy.sparse.eye_array(2, dtype=np.int64))
