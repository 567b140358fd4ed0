"""How a matrix is decomposed according to its size and where it lies: in memory, or in blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from eigenscope.engine.progress import Listener, Progress, silent
from eigenscope.errors import InputError
from eigenscope.measures import rank
from eigenscope.methods import choose, krylov
from eigenscope.methods.adaptive import adaptive_svd
from eigenscope.methods.exact import DEFAULT_TOLERANCE
from eigenscope.methods.row_blocks import MOST_COLUMNS, Centre, complete_triplets, reduce_rows
from eigenscope.methods.streaming import single_pass_svd, two_pass_svd
from eigenscope.models.matrix_file import MatrixFile
from eigenscope.operators.arrays import Dense, Sparse
from eigenscope.operators.base import LinearOperator
from eigenscope.operators.streamed import BLOCK_BYTES, Rows, SlicedRows, centred, column_means
from eigenscope.results import Spectrum

IN_MEMORY = 2**31
"""Bytes of float64 beyond which a file whose rows can be read in blocks is."""
MOST_VALUES = 4096
"""Size of the small side up to which all singular values are computed."""
LEADING = 20
BLOCK = 32
"""Columns that one pass over a file multiplies at least."""
COSTLY = 2e11
"""Operations beyond which the error of an approximation of a sparse matrix is taken from the norms, not measured."""


@dataclass(frozen=True)
class Wanted:
    """What a route computes; fields as in :func:`eigenscope.tasks.decompose.decompose`, ``share`` of ‖A‖_F² to be kept."""

    k: int | None
    share: float | None
    tol: float | None
    passes: int | None
    pca: bool
    vectors: bool
    device: str
    dtype: str
    seed: int


@dataclass(frozen=True)
class Found:
    """What a route found.

    Attributes:
        spectrum: the triplets asked for; all values where none were.
        complete: all values, where they are known.
        error: ‖A − UΣVᴴ‖_F/‖A‖_F of the triplets.
        matrix: in memory, as given.
        mean: (n,) that was taken away from each row, or None.
        density: share of the entries that are not 0, where counted.
        passes: over the file, 0 where it was read whole.
        notes: what a reader should know.
    """

    spectrum: Spectrum
    complete: Spectrum | None
    error: float | None
    matrix: Dense | Sparse | None
    mean: Tensor | None
    density: float | None
    passes: int
    notes: tuple[str, ...] = ()


def costs(matrix: MatrixFile, wanted: Wanted, by_rows: bool) -> dict[str, str]:
    """What a decomposition costs, in words."""
    rows, cols = matrix.shape or (0, 0)
    short, long = min(rows, cols), max(rows, cols)
    k = wanted.k or (short if wanted.vectors or short <= MOST_VALUES else LEADING)
    if not by_rows:
        all_values = short**2 * long + 4 * short**3 / 3 if short <= MOST_VALUES else 0.0
        return {
            "read": "whole, into memory",
            "arithmetic": f"{(all_values + 4 * rows * cols * k * bool(wanted.k or wanted.vectors)) / 1e9:,.1f} Gflop",
            "memory": f"about {(3 * 8 * rows * cols + 8 * short**2) / 1e6:,.0f} MB, the matrix in float64 included",
        }
    if not _by_gram(matrix) and wanted.passes is not None:
        return {
            "read": "in blocks of rows: random sketches, "
            + (
                "no residuals, which would take a second pass"
                if wanted.passes == 1
                else "the second pass measures residuals"
            ),
            "passes": str(wanted.passes),
            "memory": f"about {(4 * BLOCK_BYTES + 8 * (13 if wanted.passes == 1 else 4) * k * (rows + cols)) / 1e6:,.0f} MB",
        }
    if not _by_gram(matrix):
        return {
            "read": "in blocks of rows, once for every product of a block Krylov method and of its adjoint",
            "memory": f"about {(4 * BLOCK_BYTES + 8 * 4 * k * (rows + cols)) / 1e6:,.0f} MB",
        }
    asked = _asks_vectors(wanted)
    second = "; a second pass gives the left vectors, residuals and the error" if wanted.passes != 1 and asked else ""
    without = "; no left vectors and no residuals, which would take a second pass" if wanted.passes == 1 else ""
    return {
        "read": f"in blocks of rows: one pass gives all values with bounds and the right vectors{second}{without}",
        "passes": "2" if second else "1",
        "arithmetic": f"{(short**2 * long + 4 * short**3 / 3 + 8 * rows * cols * k * bool(second)) / 1e9:,.1f} Gflop",
        "memory": f"about {(4 * BLOCK_BYTES + 3 * 8 * short**2 + 16 * k * (rows + cols) * bool(second)) / 1e6:,.0f} MB",
    }


def _asks_vectors(wanted: Wanted) -> bool:
    return wanted.k is not None or wanted.share is not None or wanted.vectors


def in_memory(operator: LinearOperator, wanted: Wanted) -> Found:
    """Decompose a dense or sparse matrix.

    Raises:
        InputError: a sparse matrix on another device than the CPU.
    """
    if not isinstance(operator, Dense | Sparse):
        raise InputError(f"a {type(operator).__name__}", expected="a dense or sparse matrix", remedy="use es.svd")
    if isinstance(operator, Sparse) and wanted.device != "cpu":
        raise InputError(f"a sparse matrix on {wanted.device!r}", expected="the CPU", remedy="leave --device out")
    rows, cols = operator.shape
    if isinstance(operator, Sparse) and min(rows, cols) <= MOST_COLUMNS and (wanted.pca or 8 * rows * cols > IN_MEMORY):
        adjoint = rows < cols
        tall = (operator.matrix.conj().T if adjoint else operator.matrix).tocsr()
        sliced = Rows(SlicedRows(tall.astype("complex128" if operator.dtype.is_complex else "float64")))
        found = _by_row_blocks(sliced, replace(wanted, passes=None), adjoint)
        return replace(found, matrix=operator, density=_density(operator), passes=0)
    subject, mean = _centred(operator) if wanted.pca else (operator, None)
    if isinstance(subject, Dense) and wanted.device != "cpu":
        subject = Dense(subject.matrix.to(wanted.device))
    short = min(rows, cols)
    complete = _all_values(subject, wanted) if short <= MOST_VALUES else None
    k = _count(complete, wanted, short)
    if k is None and complete is not None:
        return Found(complete, complete, None, operator, mean, _density(operator), 0)
    norm = partial(_frobenius, operator, mean)
    spectrum = _leading(subject, k, wanted, norm)
    if complete is None and spectrum.complete:
        complete = spectrum
    spectrum = replace(spectrum, frobenius=norm(spectrum) if complete is None else complete.frobenius)
    error, notes = _error(subject, spectrum, spectrum.frobenius or 0.0)
    return Found(spectrum, complete, error, operator, mean, _density(operator), 0, notes)


def _centred(operator: Dense | Sparse) -> tuple[LinearOperator, Tensor]:
    """A − 1μᵀ and μ, in double precision; a dense matrix is copied, a sparse one stays as it is."""
    wide = torch.complex128 if operator.dtype.is_complex else torch.float64
    if isinstance(operator, Dense):
        entries = operator.matrix.to(wide)
        mean = entries.mean(dim=0)
        return Dense(entries - mean), mean
    sparse = Sparse(operator.matrix.astype(str(wide).removeprefix("torch.")))
    mean = column_means(sparse)
    return centred(sparse, mean), mean


def _all_values(subject: LinearOperator, wanted: Wanted) -> Spectrum:
    return _on_cpu(
        choose.spectrum(subject, tol=wanted.tol, method="lapack-float32" if wanted.dtype == "float32" else "auto")
    )


def _leading(
    subject: LinearOperator,
    k: int | None,
    wanted: Wanted,
    norm: Callable[[Spectrum | None], float | None],
    by_rows: bool = False,
) -> Spectrum:
    """The k leading triplets; without k as many as keep the share."""
    generator = torch.Generator().manual_seed(wanted.seed)
    if k is not None and by_rows:
        # A pass costs the same whatever the number of columns that it multiplies.
        block, tol = min(max(BLOCK, k), *subject.shape), DEFAULT_TOLERANCE if wanted.tol is None else wanted.tol
        return krylov.singular_triplets(subject, k, block=block, tol=tol, generator=generator)
    if k is not None:
        return _on_cpu(choose.svd(subject, k, tol=wanted.tol, generator=generator))
    share = wanted.share or 1.0
    if share == 1.0:
        return _on_cpu(choose.svd(subject, min(subject.shape), tol=wanted.tol, generator=generator))
    error = math.sqrt(1.0 - share)
    result = adaptive_svd(subject, error=error, frobenius=norm(None), tol=wanted.tol, generator=generator)
    return replace(_on_cpu(result.spectrum), reason=f"{result.spectrum.reason}; rank by the error asked for")


def _count(complete: Spectrum | None, wanted: Wanted, short: int) -> int | None:
    """How many triplets; None for values only, or where the share is to be found without all values."""
    if wanted.k is not None:
        return wanted.k
    if complete is None:
        return None if wanted.share is not None else LEADING
    if wanted.share is not None:
        return max(1, rank.rank_for_energy(complete.values.cpu().numpy(), wanted.share) or 1)
    return short if wanted.vectors else None


def cut(spectrum: Spectrum, k: int) -> Spectrum:
    """The k leading triplets of a spectrum."""

    def leading(part: Tensor | None) -> Tensor | None:
        return None if part is None else part[..., :k]

    return replace(
        spectrum, values=spectrum.values[:k], left=leading(spectrum.left), right=leading(spectrum.right),
        residuals=leading(spectrum.residuals), bounds=spectrum.bounds[:k], converged=spectrum.converged[:k],
        complete=spectrum.complete and k >= len(spectrum),
    )  # fmt: skip


def streamed(matrix: MatrixFile, wanted: Wanted, progress: Listener = silent) -> Found:
    """Decompose a matrix that is read in blocks of rows; progress is told of each pass.

    Raises:
        InputError: another device than the CPU; one pass over a matrix that needs more.
    """
    if matrix.rows is None or matrix.shape is None:
        raise InputError(f"a {matrix.format} file is not read by rows", where=matrix.source)
    if wanted.device != "cpu":
        raise InputError(f"a matrix that is read in blocks, on {wanted.device!r}", expected="the CPU")
    rows = Rows(
        matrix.rows, watch=lambda done, total: progress(Progress(done, total, f"rows of pass {rows.passes + 1}"))
    )
    notes = ("a matrix that is read in blocks is computed in float64",) if wanted.dtype != "float64" else ()
    if _by_gram(matrix):
        found = _by_row_blocks(rows, wanted, matrix.adjoint)
        return replace(found, notes=(*notes, *found.notes))
    if wanted.passes is not None:
        found = _few_passes(rows, wanted, matrix)
        return replace(found, notes=(*notes, *found.notes))
    subject = rows.T if matrix.adjoint else rows
    mean = column_means(subject) if wanted.pca else None
    norm = partial(_frobenius, rows, mean)
    k = _count(None, wanted, min(matrix.shape))
    spectrum = _leading(centred(subject, mean) if mean is not None else subject, k, wanted, norm, by_rows=True)
    spectrum = replace(spectrum, frobenius=norm(spectrum))
    error, more = _error(subject, spectrum, spectrum.frobenius or 0.0)
    return Found(spectrum, None, error, None, mean, rows.density, rows.passes, (*notes, *more))


def _by_gram(matrix: MatrixFile) -> bool:
    """Whether the Gram matrix of the columns of the stored rows is small enough."""
    if matrix.rows is None:
        return False
    rows, cols = matrix.rows.shape
    return cols <= min(rows, MOST_COLUMNS)


def _by_row_blocks(rows: Rows, wanted: Wanted, adjoint: bool) -> Found:
    """One or two passes over the rows of A, or with ``adjoint`` of Aᴴ = VΣUᴴ."""
    cols = rows.shape[1]
    most = wanted.k or cols
    centre: Centre = "" if not wanted.pca else "rows" if adjoint else "columns"
    reduced = reduce_rows(rows, most, centre=centre, tol=wanted.tol)
    k = _count(reduced.spectrum, wanted, cols)
    first = cut(reduced.spectrum, most if k is None else k)
    complete = replace(reduced.spectrum, right=None)
    spectrum, error = (complete if k is None else first), None
    notes: tuple[str, ...] = ()
    if k is not None and wanted.passes == 1:
        notes = (
            f"one pass: no {'right' if adjoint else 'left'} vectors and no residuals; the bounds of the values hold",
        )
    elif k is not None:
        spectrum, error = complete_triplets(rows, reduced, k, tol=wanted.tol)
    mean = reduced.mean
    if adjoint:
        spectrum, complete = _turned(spectrum), _turned(complete)
        mean = None if mean is None else mean.conj().resolve_conj()
    return Found(spectrum, complete, error, None, mean, rows.density, rows.passes, notes)


def _turned(spectrum: Spectrum) -> Spectrum:
    """The triplets of Aᴴ as those of A."""
    return replace(spectrum, left=spectrum.right, right=spectrum.left, shape=spectrum.shape[::-1])


def _few_passes(rows: Rows, wanted: Wanted, matrix: MatrixFile) -> Found:
    """One or two passes over rows too long for the Gram matrix of their columns: random sketches of k columns.

    Raises:
        InputError: principal components, whose mean would take another pass; a share to be kept, which takes more.
    """
    if wanted.pca or wanted.share is not None:
        raise InputError(
            f"{wanted.passes} passes for {'principal components' if wanted.pca else 'an error that is asked for'}",
            where=matrix.source, expected=f"at most {MOST_COLUMNS} rows or columns, or -k", remedy="leave --passes out",
        )  # fmt: skip
    cols, k = rows.shape[1], wanted.k or LEADING
    generator = torch.Generator().manual_seed(wanted.seed)

    def read() -> Iterator[Tensor]:
        return (block for _, block in rows.blocks())

    notes: tuple[str, ...] = ()
    if wanted.passes == 1:
        result = single_pass_svd(read(), cols, k, tol=wanted.tol, generator=generator)
        most = result.bound / (result.spectrum.frobenius or 1.0)
        notes = (
            f"one pass: no residuals; the error is estimated, and at most {most:.2g} but for a chance of {result.failure:.0e}",
        )
    else:
        result = two_pass_svd(read, cols, k, tol=wanted.tol, generator=generator)
    spectrum = result.spectrum
    error = result.error / spectrum.frobenius if spectrum.frobenius else 0.0
    spectrum = _turned(spectrum) if matrix.adjoint else spectrum
    return Found(spectrum, None, error, None, None, rows.density, rows.passes, notes)


def _error(subject: LinearOperator, spectrum: Spectrum, total: float) -> tuple[float | None, tuple[str, ...]]:
    """‖A − UΣVᴴ‖_F/‖A‖_F, entry by entry where that is affordable, and how it was found."""
    left, right = spectrum.left, spectrum.right
    if left is None or right is None or total == 0.0:
        return (0.0 if total == 0.0 else None), ()
    rows, cols = subject.shape
    affordable = isinstance(subject, Dense) or (
        isinstance(subject, Sparse) and 2.0 * rows * cols * len(spectrum) < COSTLY
    )
    if not affordable:
        missing = max(0.0, 1.0 - float((spectrum.values / total).square().sum()))
        return math.sqrt(missing), ("the error of the approximation follows from the norms, ‖A‖F² − Σσ²",)
    height, parts = max(1, BLOCK_BYTES // (8 * cols)), []
    for start in range(0, rows, height):
        block = _rows_of(subject, start, start + height).to(left.dtype)
        # Divided first: squares of entries near the ends of the range would leave it.
        difference = (block - (left[start : start + height] * spectrum.values) @ right.mH) / total
        parts.append(float(torch.linalg.vector_norm(difference)))
    return math.hypot(*parts), ()


def _rows_of(subject: LinearOperator, start: int, stop: int) -> Tensor:
    if isinstance(subject, Dense):
        return subject.matrix[start:stop].cpu()
    if isinstance(subject, Sparse):
        return torch.from_numpy(subject.matrix.tocsr()[start:stop].toarray())
    raise InputError(f"rows of a {type(subject).__name__}", expected="a dense or sparse matrix")


def _frobenius(base: LinearOperator, mean: Tensor | None, spectrum: Spectrum | None) -> float | None:
    """‖A − 1μᵀ‖_F of a matrix and the mean that was taken away: ‖A‖_F² − m‖μ‖²; as decomposed, where that is known.

    None of a dense matrix that has not been decomposed: its methods find it themselves.
    """
    if spectrum is not None and spectrum.frobenius is not None:
        return spectrum.frobenius
    if isinstance(base, Sparse):
        entries = base.matrix.copy()
        entries.sum_duplicates()
        norm = float(np.linalg.norm(entries.data.astype(np.complex128 if base.dtype.is_complex else np.float64)))
    elif isinstance(base, Rows):
        wide = torch.complex128 if base.dtype.is_complex else torch.float64
        norm = math.hypot(*(float(torch.linalg.vector_norm(block.to(wide))) for _, block in base.blocks()))
    else:
        return None
    removed = (
        0.0
        if mean is None
        else math.sqrt(base.shape[0] if len(mean) == base.shape[1] else base.shape[1])
        * float(torch.linalg.vector_norm(mean))
    )
    return math.sqrt(max(0.0, (norm - removed) * (norm + removed)))


def _density(operator: Dense | Sparse) -> float:
    if isinstance(operator, Sparse):
        return float(operator.matrix.count_nonzero()) / (operator.shape[0] * operator.shape[1])
    return float(torch.count_nonzero(operator.matrix)) / operator.matrix.numel()


def _on_cpu(spectrum: Spectrum) -> Spectrum:
    def moved(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.cpu()

    return replace(
        spectrum, values=spectrum.values.cpu(), left=moved(spectrum.left), right=moved(spectrum.right),
        residuals=moved(spectrum.residuals), bounds=spectrum.bounds.cpu(), converged=spectrum.converged.cpu(),
    )  # fmt: skip
