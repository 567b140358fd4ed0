"""The Krylov solvers against LAPACK and ARPACK on matrices that others publish: exit 1 on any disagreement.

Finite elements of pyamg (``bar`` has eigenvalues 4e-16 apart), PROPACK's two matrices, and a periodic Laplacian, each by
several block sizes and seeds. Usage: python oracles/krylov.py [FOLDER of pyamg's example_data, where it is not installed]
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np
import scipy.io
import scipy.sparse as sp
import scipy.sparse.linalg as spla
import torch

from eigenscope.errors import ConvergenceWarning
from eigenscope.methods import propack
from eigenscope.methods.krylov import eigenpairs, singular_triplets
from eigenscope.operators.arrays import Sparse

DENSE = 4000
"""Smaller side up to which LAPACK gives the truth; ARPACK to full accuracy beyond."""


def published() -> Iterator[tuple[str, sp.csr_array]]:
    """Name and matrix."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    found = importlib.util.find_spec("pyamg")
    if folder is None and found is not None and found.origin is not None:
        folder = Path(found.origin).parent / "gallery" / "example_data"
    if folder is None:
        print("pyamg is not installed: its matrices are left out")
    else:
        for name in ("bar", "unit_square", "unit_cube", "airfoil", "knot", "recirc_flow", "helmholtz_2D"):
            yield name, sp.csr_array(scipy.io.loadmat(folder / f"{name}.mat")["A"])
    scipy_tests = Path(spla.__file__).parent / "tests" / "propack_test_data.npz"
    data = np.load(scipy_tests, allow_pickle=True)
    yield "PROPACK real", sp.csr_array(data["A_real"].item())
    yield "PROPACK complex", sp.csr_array(data["A_complex"].item())
    ones = np.ones(60)
    line = sp.diags_array([2 * ones, -ones[1:], -ones[1:], [-1.0], [-1.0]], offsets=[0, 1, -1, 59, -59])
    yield "periodic Laplacian", sp.csr_array(sp.kronsum(line, line))


def truth(matrix: sp.csr_array, k: int, symmetric: bool) -> np.ndarray:
    """The k largest eigenvalues, or singular values, descending."""
    if min(matrix.shape) <= DENSE:
        dense = matrix.toarray()
        values = np.linalg.eigvalsh(dense) if symmetric else np.linalg.svd(dense, compute_uv=False)
    elif symmetric:
        values = spla.eigsh(matrix, k + 20, which="LA", tol=0, ncv=4 * k + 80, return_eigenvectors=False)
    else:
        values = spla.svds(matrix, k + 20, tol=0, ncv=4 * k + 80, return_singular_vectors=False)
    return np.sort(values)[::-1][:k]


def checked_propack(name: str, operator: Sparse, k: int) -> int:
    """Wrong answers of the PROPACK method, which has to find every copy or to hand over; complex matrices it refuses."""
    if operator.dtype.is_complex:
        return 0
    expected = truth(operator.matrix, k, False)
    wrong = 0
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        found = propack.singular_triplets(operator, k, tol=1e-8, generator=generator)
        worst = float(np.abs(found.values.numpy() - expected).max() / expected.max())
        fault = worst > 1e-8 or not bool(found.converged.all())
        wrong += fault
        print(f"{name}, propack k={k} seed={seed}: error {worst:.1e}, {found.products} products, {found.reason}"
              f"{' WRONG' if fault else ''}", flush=True)  # fmt: skip
    return wrong


def main() -> int:
    """Run all; the exit code."""
    torch.set_num_threads(1)
    faults = 0
    for name, matrix in published():
        symmetric = (
            matrix.shape[0] == matrix.shape[1] and abs(matrix - matrix.conj().T).max() <= 1e-14 * abs(matrix).max()
        )
        operator = Sparse(matrix.astype(complex if np.iscomplexobj(matrix) else float), symmetric=bool(symmetric))
        for k in (5, 40):
            expected = truth(matrix, k, symmetric)
            faults += checked_propack(name, operator, k)
            for block in (1, 4, None):
                for seed in (0, 1):
                    with warnings.catch_warnings():
                        warnings.simplefilter("error", ConvergenceWarning)
                        solve = eigenpairs if symmetric else singular_triplets
                        found = solve(operator, k, tol=1e-8, block=block, generator=torch.Generator().manual_seed(seed))
                    worst = float(np.abs(found.values.numpy() - expected).max() / abs(expected).max())
                    wrong = worst > 1e-8 or not bool(found.converged.all())
                    faults += wrong
                    print(
                        f"{name} {matrix.shape[0]}×{matrix.shape[1]}, {'eigen' if symmetric else 'singular'} k={k} block={block}"
                        f" seed={seed}: error {worst:.1e}, {found.products} products{' WRONG' if wrong else ''}",
                        flush=True,
                    )
    print(f"{faults} disagreements")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
