"""The laws that every operator keeps, tried on each against its dense twin; and that none escapes them."""

from __future__ import annotations

import gc
import importlib
import inspect
import pkgutil
from collections.abc import Iterable

import pytest
import torch

import eigenscope.operators
from cases import CASES, SPECTRA, Case, close, gaussian, symmetric_with_spectrum, with_spectrum
from eigenscope.errors import InputError
from eigenscope.operators.algebra import Block, Gram
from eigenscope.operators.arrays import Dense
from eigenscope.operators.base import LinearOperator

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def concrete_classes() -> set[type[LinearOperator]]:
    """Every concrete operator class of the package, its modules all imported."""
    for module in pkgutil.walk_packages(eigenscope.operators.__path__, "eigenscope.operators."):
        importlib.import_module(module.name)
    found, queue = set(), [LinearOperator]
    while queue:
        for kind in queue.pop().__subclasses__():
            queue.append(kind)
            if not inspect.isabstract(kind) and kind.__module__.startswith("eigenscope."):
                found.add(kind)
    return found


def classes_without_case(classes: Iterable[type[LinearOperator]], cases: Iterable[Case]) -> set[type[LinearOperator]]:
    return set(classes) - {case.kind for case in cases}


def test_every_operator_class_has_a_case() -> None:
    missing = classes_without_case(concrete_classes(), CASES)
    assert not missing, f"add cases to tests/cases.py for {sorted(kind.__name__ for kind in missing)}"


def test_a_class_without_a_case_is_reported() -> None:
    def members(module: str) -> dict[str, object]:
        return {"_matmat": lambda self, X: X, "_adjoint": lambda self: self, "__module__": module}

    rogue = type("Rogue", (LinearOperator,), members("eigenscope.operators.rogue"))
    type("Elsewhere", (LinearOperator,), members("another.package"))
    type("Abstract", (LinearOperator,), {"__module__": "eigenscope.operators.rogue"})
    try:
        assert classes_without_case(concrete_classes(), CASES) == {rogue}
        without_gram = [case for case in CASES if case.kind is not Gram]
        assert classes_without_case(concrete_classes(), without_gram) == {rogue, Gram}
    finally:
        del rogue  # classes are cyclic garbage: the other tests must not meet these
        gc.collect()


@every_case
def test_product_is_that_of_the_dense_twin(case: Case) -> None:
    A, D = case.build()
    X = gaussian(A.shape[1], 3, 20, A.dtype)
    given = X.clone()
    assert close(A @ X, D @ X, D, X)
    assert torch.equal(X, given)
    assert A.products == 3


@every_case
def test_shape_dtype_device_and_class_are_those_announced(case: Case) -> None:
    A, D = case.build()
    assert type(A) is case.kind
    assert (A.shape, A.dtype, A.device) == (tuple(D.shape), D.dtype, D.device)
    Y = A @ gaussian(A.shape[1], 2, 21, A.dtype)
    assert (Y.shape, Y.dtype, Y.device) == ((A.shape[0], 2), A.dtype, A.device)


@every_case
def test_to_dense_is_the_dense_twin(case: Case) -> None:
    A, D = case.build()
    assert close(A.to_dense(), D)


@every_case
def test_adjoint_law(case: Case) -> None:
    """⟨A x, y⟩ = ⟨x, Aᴴ y⟩."""
    A, D = case.build()
    x, y = gaussian(A.shape[1], 1, 22, A.dtype)[:, 0], gaussian(A.shape[0], 1, 23, A.dtype)[:, 0]
    assert close(torch.vdot(A @ x, y), torch.vdot(x, A.T @ y), D, x, y)


@every_case
def test_adjoint_is_the_conjugate_transpose_and_an_involution(case: Case) -> None:
    A, D = case.build()
    X, Y = gaussian(A.shape[1], 2, 24, A.dtype), gaussian(A.shape[0], 2, 25, A.dtype)
    assert A.T.shape == A.shape[::-1]
    assert (A.T.dtype, A.T.device) == (A.dtype, A.device)
    assert close(A.T @ Y, D.mH @ Y, D, Y)
    assert close(A.T.T @ X, A @ X, D, X)


@every_case
def test_symmetric_only_where_the_matrix_is(case: Case) -> None:
    A, D = case.build()
    if A.symmetric:
        assert A.T is A
        assert close(D, D.mH.clone())
    if D.numel():  # 0×0 equals its adjoint whether said or not
        assert A.symmetric == (case.kind is Gram or "symmetric" in case.name or "principal" in case.name)


@every_case
def test_linearity(case: Case) -> None:
    A, D = case.build()
    X, Y = gaussian(A.shape[1], 2, 26, A.dtype), gaussian(A.shape[1], 2, 27, A.dtype)
    factor = 0.5 + 2.0j if A.dtype.is_complex else 0.5
    assert close(A @ (factor * X + Y), factor * (A @ X) + A @ Y, D, X.abs() + Y.abs())


@every_case
def test_blocks_of_no_and_one_column_and_vectors(case: Case) -> None:
    A, D = case.build()
    x = gaussian(A.shape[1], 1, 28, A.dtype)
    nothing = A @ x[:, :0]
    assert (nothing.shape, nothing.dtype) == ((A.shape[0], 0), A.dtype)
    assert A.products == 0
    assert close(A @ x, D @ x, D, x)
    assert close(A @ x[:, 0], (D @ x)[:, 0], D, x)
    assert A.products == 2


@every_case
def test_strided_and_conjugated_blocks(case: Case) -> None:
    A, D = case.build()
    X = gaussian(6, A.shape[1], 29, A.dtype).mH[:, ::2]
    assert close(A @ X, D @ X.clone(), D, X)


@every_case
def test_wrong_blocks_are_refused_with_their_numbers(case: Case) -> None:
    A, _ = case.build()
    n = A.shape[1]
    with pytest.raises(InputError, match=rf"\({n + 1}, 2\).*\({n}, k\)"):
        A @ torch.zeros(n + 1, 2, dtype=A.dtype)
    with pytest.raises(InputError, match=rf"\({n}, 2, 1\)"):
        A @ torch.zeros(n, 2, 1, dtype=A.dtype)
    with pytest.raises(InputError, match=rf"float16.*{A.dtype}"):
        A @ torch.zeros(n, 2, dtype=torch.float16)
    with pytest.raises(InputError, match=r"meta.*cpu"):
        A @ torch.zeros(n, 2, dtype=A.dtype, device="meta")
    assert A.products == 0


@every_case
def test_algebra_is_that_of_the_dense_twin(case: Case) -> None:
    A, D = case.build()
    m, n = A.shape
    B = Dense(gaussian(n, 3, 30, A.dtype))
    E = Dense(gaussian(m, n, 31, A.dtype))
    X, Y = gaussian(n, 2, 32, A.dtype), gaussian(3, 2, 33, A.dtype)
    assert close((A + E) @ X, (D + E.matrix) @ X, D.abs() + E.matrix.abs(), X)
    assert close((A - E) @ X, (D - E.matrix) @ X, D.abs() + E.matrix.abs(), X)
    assert close((3 * A) @ X, 3 * D @ X, 3 * D, X)
    assert close((-A) @ X, -D @ X, D, X)
    assert close((A @ B) @ Y, D @ (B.matrix @ Y), D, B.matrix, Y)
    assert close(A.gram() @ X, D.mH @ (D @ X), D, D, X)
    assert close(Block(A, slice(1, None), slice(None, 3)).to_dense(), D[1:, :3].clone(), D)


@pytest.mark.parametrize("values", SPECTRA, ids=str)
@pytest.mark.parametrize("k", [1, 2, 7, 12])
def test_prescribed_spectra_are_those_of_the_matrices(values: str, k: int) -> None:
    expected = SPECTRA[values](k)
    assert expected.shape == (k,)
    assert bool((expected[:-1] >= expected[1:]).all())
    for dtype in (torch.float64, torch.complex128):
        for m, n in ((k, k), (k + 5, k), (k, k + 3)):
            found = torch.linalg.svdvals(with_spectrum(m, n, expected, 58, dtype))
            assert float((found - expected).abs().max()) <= 1e-14 * (1.0 + float(expected[0]))
        S = symmetric_with_spectrum(expected, 59, dtype)
        assert torch.equal(S, S.mH)
        assert float((torch.linalg.eigvalsh(S).flip(0) - expected).abs().max()) <= 1e-14 * (1.0 + float(expected[0]))
