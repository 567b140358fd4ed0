"""``svd``: any matrix → its singular values, how sure they are, and what they say."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

import eigenscope
from eigenscope.engine.progress import Listener, silent
from eigenscope.errors import InputError
from eigenscope.files import check_writable, replacing
from eigenscope.models.matrix_file import MatrixFile, open_matrix
from eigenscope.operators.arrays import Dense, Sparse, as_operator
from eigenscope.operators.streamed import SlicedRows
from eigenscope.results import Record, Spectrum, Value
from eigenscope.tasks import routes
from eigenscope.tasks.matrix_readings import matrix_readings
from eigenscope.tasks.pca import Components, principal_components
from eigenscope.tasks.readings import ScanOptions
from eigenscope.tasks.routes import Wanted
from eigenscope.tasks.solve import Solution

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class DecomposeOptions:
    """What is computed of a matrix, and how.

    Attributes: see :func:`decompose`.

    Raises:
        InputError: a value out of range, or several of k, energy and error.
    """

    k: int | None = None
    energy: float | None = None
    error: float | None = None
    tol: float | None = None
    passes: int | None = None
    pca: bool = False
    vectors: bool = False
    target_condition: float = 1e4
    device: str = "cpu"
    dtype: str = "float64"
    seed: int = 0

    def __post_init__(self) -> None:
        given = [name for name in ("k", "energy", "error") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(" and ".join(given), expected="one of k, energy and error")
        if self.k is not None and self.k < 1:
            raise InputError(f"k = {self.k}", expected="at least 1")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise InputError(f"energy {self.energy}", expected="a share in (0, 1]")
        if self.error is not None and not 0.0 < self.error < 1.0:
            raise InputError(f"error {self.error}", expected="a relative Frobenius error in (0, 1)")
        if self.tol is not None and not self.tol >= 0.0:
            raise InputError(f"tolerance {self.tol}", expected="0 or more, relative to ‖A‖₂")
        if self.passes not in (None, 1, 2):
            raise InputError(f"{self.passes} passes", expected="1 or 2")
        # These checks are the same for every verb.
        ScanOptions(device=self.device, dtype=self.dtype, target_condition=self.target_condition)

    @property
    def share(self) -> float | None:
        """The part of ‖A‖_F² that the leading values must keep; None where not asked for."""
        return self.energy if self.error is None else 1.0 - self.error**2


@dataclass(frozen=True)
class DecomposePlan:
    """What will be read and what it costs; made without reading an entry where the format allows it.

    Attributes:
        matrix: the file, or the array.
        options: what is computed.
    """

    matrix: MatrixFile
    options: DecomposeOptions

    @property
    def streamed(self) -> bool:
        """Whether rows are read block by block, never all at once."""
        shape = self.matrix.shape
        if self.matrix.rows is None or shape is None:
            return False
        return self.options.passes is not None or 8 * shape[0] * shape[1] > routes.IN_MEMORY

    def wanted(self) -> Wanted:
        """The computation as the routes take it."""
        o = self.options
        return Wanted(o.k, o.share, o.tol, o.passes, o.pca, o.vectors, o.device, o.dtype, o.seed)

    def lines(self) -> dict[str, str]:
        """The plan in words, for ``--plan``."""
        matrix = self.matrix
        lines = {"source": matrix.source, "format": matrix.format, "dtype": matrix.dtype}
        lines["shape"] = "known when it is read" if matrix.shape is None else f"{matrix.shape[0]}×{matrix.shape[1]}"
        lines["to read"] = f"{matrix.size / 1e6:,.1f} MB"
        if matrix.shape is not None:
            lines |= routes.costs(matrix, self.wanted(), self.streamed)
        return lines | {f"note {i + 1}": note for i, note in enumerate(matrix.notes)}


@dataclass(frozen=True)
class Decomposition:
    """The result of :func:`decompose`.

    Attributes:
        source: what was decomposed.
        spectrum: what was asked for: the leading triplets, or all values.
        values: all singular values, descending, where they are known.
        readings: plain values: shape, rank, condition, errors, …; names as in ``eigenscope.columns`` where they are there.
        error: ‖A − UΣVᴴ‖_F/‖A‖_F of the triplets, or None where there are none.
        components: with ``pca``, the principal components.
        matrix: the matrix in memory, or None where it was streamed.
        provenance: how it was made.
        notes: what a reader should know.
    """

    source: str
    spectrum: Spectrum
    values: NDArray[np.float64] | None
    readings: Mapping[str, Value]
    error: float | None
    components: Components | None
    matrix: Dense | Sparse | None
    provenance: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def record(self) -> Record:
        """The same as one row of a run, for reports."""
        return Record(self.source, self.readings, self.values)

    def figure(self) -> go.Figure:
        """A Plotly figure: of a real map between at most three dimensions what it does to the unit sphere, else its values
        and leading vectors.
        """
        from eigenscope.report import geometry

        small = geometry.LARGEST
        if isinstance(self.matrix, Dense) and max(self.matrix.shape) <= small and not self.matrix.dtype.is_complex:
            return geometry.sphere_figure(self.matrix.matrix.cpu().numpy(), self.source)
        edge = self.readings.get("noise_edge") if self.components is None else self.components.noise_edge
        values = self.spectrum.values.cpu().numpy() if self.values is None else self.values
        return geometry.values_figure(
            values, self.source, frobenius=self.spectrum.frobenius, edge=edge if isinstance(edge, float) else None,
            left=_leading(self.spectrum.left), right=_leading(self.spectrum.right),
        )  # fmt: skip

    def save(self, path: str | Path, solution: Solution | None = None) -> Path:
        """Write the factors: ``U`` (m, k), ``S`` (k,) and ``V`` (n, k) with A ≈ U diag(S) Vᴴ, what bounds their error, the
        components of ``pca``, and the solution ``x``.

        Args:
            path: ends in .npz or .safetensors.
            solution: of :func:`eigenscope.tasks.solve.solve`, to be kept with them.

        Raises:
            InputError: another ending, or complex factors in safetensors, which has no complex128.
            OSError: the file cannot be written; an older one of that name is then untouched.
        """
        target = Path(path)
        check_save(target, complex_factors=self.spectrum.right is not None and self.spectrum.right.is_complex())
        arrays = _arrays(self) | ({} if solution is None else {"x": solution.x})
        with replacing(target) as beside:
            if target.suffix.lower() == ".npz":
                with beside.open("wb") as stream:
                    np.savez(stream, **{name: part.numpy() for name, part in arrays.items()})  # type: ignore[arg-type]
            else:
                facts = {"source": self.source, "method": self.spectrum.method, "reason": self.spectrum.reason}
                save_file({name: part.contiguous() for name, part in arrays.items()}, beside, facts)
        return target

    def __repr__(self) -> str:
        rows, cols = self.spectrum.shape
        return f"Decomposition({self.source!r}, {rows}×{cols}, {len(self.spectrum)} values, {self.spectrum.method})"


def decompose(
    source: Any,
    *,
    k: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    tol: float | None = None,
    passes: int | None = None,
    pca: bool = False,
    vectors: bool = False,
    target_condition: float = 1e4,
    device: str = "cpu",
    dtype: str = "float64",
    seed: int = 0,
) -> Decomposition:
    """Singular values and readings of a matrix: rank, condition, how well few values stand for all.

    Args:
        source: a matrix file (``FILE:NAME`` for one of several in it), or a tensor, an ndarray, mapped or
            not, a SciPy sparse matrix.
        k: leading triplets. By default all values, or the leading 20 where there are more than 4096.
        energy: as many triplets as keep this share of ‖A‖_F².
        error: as many as bring the relative Frobenius error of the approximation to this.
        tol: largest residual accepted as converged, relative to ‖A‖₂; default 1e-6.
        passes: read the file in blocks of rows and at most so many times (1 or 2); by default only what exceeds 2 GB is.
        pca: of the matrix with the mean of each column taken away.
        vectors: also the singular vectors where all values are asked for.
        target_condition: κ that the ``ridge`` reading aims at.
        device: torch device of the arithmetic, for dense matrices.
        dtype: "float64", or "float32" for faster, coarser values.
        seed: of everything random.

    Returns:
        :class:`Decomposition`.

    Raises:
        InputError: an option out of range, a matrix that is empty, not 2-D or not finite.
        SourceError: the file cannot be read, or will not be trusted.
    """
    options = DecomposeOptions(k, energy, error, tol, passes, pca, vectors, target_condition, device, dtype, seed)
    return run_plan(make_plan(source, options))


def make_plan(source: Any, options: DecomposeOptions) -> DecomposePlan:
    """Open the source; nothing is read that its header tells.

    Raises:
        InputError, SourceError: as for :func:`decompose`.
    """
    plan = DecomposePlan(open_matrix(source) if isinstance(source, str | Path) else _array(source), options)
    _check(plan, plan.matrix.shape)
    return plan


def _array(source: Any) -> MatrixFile:
    """An array in this process as the file it might be; a mapped one is read by rows where it is large."""
    if isinstance(source, np.memmap) and source.ndim == 2 and source.dtype.str[1:] in ("f4", "f8", "c8", "c16"):
        rows, cols = source.shape
        adjoint = rows < cols and source.dtype.kind == "f"
        lying = SlicedRows(source.T if adjoint else source) if source.dtype.isnative else None
        return MatrixFile(
            "matrix", "mapped array", (rows, cols), source.dtype.name, source.nbytes, lambda: source, lying, adjoint
        )
    operator = as_operator(source)
    dtype = str(getattr(source, "dtype", operator.dtype)).removeprefix("torch.")
    return MatrixFile("matrix", "array", operator.shape, dtype, 0, lambda: source)


def _check(plan: DecomposePlan, shape: tuple[int, int] | None) -> None:
    options, where = plan.options, plan.matrix.source
    if shape is None:
        return
    if 0 in shape:
        raise InputError(f"empty: {shape[0]}×{shape[1]}", where=where, expected="at least one row and one column")
    if options.k is not None and options.k > min(shape):
        raise InputError(f"k = {options.k}", where=where, expected=f"1 ≤ k ≤ {min(shape)}")
    if options.pca and shape[0] < 2:
        raise InputError("principal components of one row", where=where, expected="at least two rows")
    if options.passes is not None and plan.matrix.rows is None:
        raise InputError(
            f"--passes of a {plan.matrix.format} matrix",
            where=where,
            expected="npy or safetensors, or a mapped array, which are read by rows",
        )


def run_plan(plan: DecomposePlan, progress: Listener = silent) -> Decomposition:
    """Read and decompose; of a file that is read in blocks each pass is told to ``progress``."""
    begun, processor = time.perf_counter(), time.process_time()
    wanted = plan.wanted()
    try:
        if plan.streamed:
            found = routes.streamed(plan.matrix, wanted, progress)
        else:
            operator = as_operator(plan.matrix.load())
            _check(plan, operator.shape)
            found = routes.in_memory(operator, wanted)
    except InputError as error:
        # What finds a bad entry does not know the file.
        raise InputError(
            error.what, where=plan.matrix.source if error.where in ("", "matrix") else error.where,
            expected=error.expected, remedy=error.remedy,
        ) from error  # fmt: skip
    readings = matrix_readings(found, plan.matrix.dtype, plan.options.target_condition)
    components = principal_components(found) if plan.options.pca else None
    provenance = {
        "eigenscope": eigenscope.__version__, "torch": torch.__version__, "numpy": np.__version__,
        "wall seconds": round(time.perf_counter() - begun, 3), "CPU seconds": round(time.process_time() - processor, 3),
        "passes": found.passes, "products": found.spectrum.products, "seed": plan.options.seed,
        "device": plan.options.device, "dtype": plan.options.dtype,
    }  # fmt: skip
    values = None if found.complete is None else found.complete.values.cpu().numpy()
    return Decomposition(
        plan.matrix.source, found.spectrum, values, readings, found.error, components, found.matrix, provenance,
        (*plan.matrix.notes, *found.notes),
    )  # fmt: skip


def check_save(path: Path, complex_factors: bool = False) -> None:
    """Refuse before the work a file of factors that could not be written after it; arguments as for ``save``.

    Raises:
        InputError, OSError: as there.
    """
    if path.suffix.lower() not in (".npz", ".safetensors"):
        raise InputError(f"factors in {path.name!r}", where=str(path), expected="a name ending in .npz or .safetensors")
    if complex_factors and path.suffix.lower() == ".safetensors":
        raise InputError("complex factors in safetensors", where=str(path), expected="a name ending in .npz")
    check_writable(path)


def _arrays(result: Decomposition) -> dict[str, torch.Tensor]:
    spectrum, components = result.spectrum, result.components
    found = {
        "U": spectrum.left, "S": spectrum.values, "V": spectrum.right, "residuals": spectrum.residuals,
        "bounds": spectrum.bounds,
        "relative_error": None if result.error is None else torch.tensor(result.error, dtype=torch.float64),
    }  # fmt: skip
    if components is not None:
        found |= {
            "mean": components.mean, "scores": components.scores, "loadings": components.loadings,
            "explained_variance": torch.from_numpy(components.explained_variance),
            "explained_variance_ratio": torch.from_numpy(components.explained_variance_ratio),
        }  # fmt: skip
    # A vector that views another, or a conjugate that is not computed yet, is not what a file takes.
    return {name: part.resolve_conj().clone() for name, part in found.items() if part is not None}


def _leading(vectors: torch.Tensor | None) -> NDArray[Any] | None:
    return None if vectors is None else vectors[:, :3].cpu().numpy()
