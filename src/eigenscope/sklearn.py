"""Estimators for scikit-learn's pipelines: ``PCA`` and ``TruncatedSVD`` on the decompositions of this package.

Both take sparse input as it is: PCA centres it without forming a dense matrix.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray

from eigenscope.errors import InputError
from eigenscope.methods import choose
from eigenscope.methods.row_blocks import MOST_COLUMNS, reduce_rows
from eigenscope.operators.arrays import Sparse
from eigenscope.operators.streamed import Rows, SlicedRows, centred

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "eigenscope.sklearn needs scikit-learn 1.6 or newer: pip install 'eigenscope[sklearn]'"
    ) from error

Array = NDArray[Any]
DTYPES = (np.float64, np.float32)


class _Projection(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What both estimators share: leading right singular vectors in ``components_``."""

    components_: Array

    @property
    def _n_features_out(self) -> int:
        return int(self.components_.shape[0])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _validated(self, X: Any, *, reset: bool) -> Any:
        if not reset:
            check_is_fitted(self)
        return validate_data(
            self, X, dtype=DTYPES, accept_sparse="csr", ensure_min_samples=2 if reset else 1, reset=reset
        )

    def fit_transform(self, X: Any, y: None = None) -> Array:
        """Fit and return the coordinates (m, k) of the rows of X."""
        coordinates: Array = self.fit(X, y).transform(X)
        return coordinates

    def fit(self, X: Any, y: None = None) -> Self:
        """Find the components."""
        raise NotImplementedError

    def transform(self, X: Any) -> Array:
        """The coordinates (m, k) of the rows of X."""
        raise NotImplementedError


class PCA(_Projection):
    """Principal components of the rows of X, dense or sparse, as ``sklearn.decomposition.PCA`` has them.

    Args:
        n_components: how many; a share in (0, 1): as many as explain more than it of the variance; None: min(m, n).
        whiten: divide the coordinates by their standard deviations.
        tol: largest residual of a component, relative to the largest singular value.
        random_state: of the random methods that large matrices are given to.

    Attributes:
        components_: (k, n), the entry of largest modulus of each positive, as ``svd_flip`` has it.
        explained_variance_, explained_variance_ratio_, singular_values_: (k,).
        mean_: (n,).
        noise_variance_: mean variance of the components left out (Tipping & Bishop, J. R. Stat. Soc. B 61(3), 1999).
        n_components_, n_samples_, n_features_in_: as their names say.
    """

    def __init__(
        self, n_components: int | float | None = None, *, whiten: bool = False, tol: float = 1e-9,
        random_state: Any = None,
    ) -> None:  # fmt: skip
        self.n_components = n_components
        self.whiten = whiten
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: None = None) -> Self:
        """Find the components of X (m, n), m ≥ 2.

        Raises:
            ValueError: X is not finite, not 2-D, or too small for ``n_components``.
        """
        X = self._validated(X, reset=True)
        rows, cols = X.shape
        asked, limit = self.n_components, min(rows, cols)
        share = float(asked) if isinstance(asked, float | np.floating) and 0.0 < asked < 1.0 else None
        k = limit if asked is None or share is not None else _count(asked, limit, X.shape)
        wide = X.astype(np.float64)
        mean = np.asarray(wide.mean(axis=0)).ravel()
        values, right, total = _centred_triplets(wide, mean, k, self.tol, self.random_state)
        variance, whole = values**2 / (rows - 1), total**2 / (rows - 1)
        if share is not None:
            k = min(limit, int(np.searchsorted(np.cumsum(variance / (whole or 1.0)), share, side="right")) + 1)
        left_out = max(0.0, whole - float(variance[:k].sum()))
        self.n_samples_, self.n_components_ = rows, k
        self.mean_ = mean.astype(X.dtype)
        self.components_ = _signed(right[:, :k]).T.astype(X.dtype)
        self.singular_values_ = values[:k].astype(X.dtype)
        self.explained_variance_ = variance[:k].astype(X.dtype)
        self.explained_variance_ratio_ = (variance[:k] / whole if whole else np.zeros(k)).astype(X.dtype)
        self.noise_variance_ = left_out / (limit - k) if k < limit else 0.0
        return self

    def transform(self, X: Any) -> Array:
        """The coordinates (m, k) of the rows of X: (X − μ)·components_ᵀ, whitened where asked."""
        X = self._validated(X, reset=False)
        found: Array = np.asarray(X @ self.components_.T) - self.mean_ @ self.components_.T
        if self.whiten:
            found = found / self._deviations()
        return found

    def inverse_transform(self, X: Any) -> Array:
        """Rows (m, n) from their coordinates (m, k)."""
        check_is_fitted(self)
        coordinates = np.asarray(X) * self._deviations() if self.whiten else np.asarray(X)
        return np.asarray(coordinates @ self.components_ + self.mean_)

    def _deviations(self) -> Array:
        deviations = np.sqrt(self.explained_variance_)
        return np.asarray(np.maximum(deviations, np.finfo(deviations.dtype).eps))


class TruncatedSVD(_Projection):
    """The leading singular triplets of X, dense or sparse, not centred, as ``sklearn.decomposition.TruncatedSVD``.

    Args:
        n_components: how many, at most min(m, n).
        tol: largest residual of a triplet, relative to the largest singular value.
        random_state: of the random methods that large matrices are given to.

    Attributes:
        components_: (k, n), the entry of largest modulus of each positive.
        singular_values_: (k,).
        explained_variance_, explained_variance_ratio_: (k,) of the coordinates, about their mean.
        n_features_in_: n.
    """

    def __init__(self, n_components: int = 2, *, tol: float = 1e-9, random_state: Any = None) -> None:
        self.n_components = n_components
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: None = None) -> Self:
        """Find the triplets of X (m, n).

        Raises:
            ValueError: X is not finite, not 2-D, or too small for ``n_components``.
        """
        X = self._validated(X, reset=True)
        k = _count(self.n_components, min(X.shape), X.shape)
        wide = X.astype(np.float64)
        found = choose.svd(wide, k, tol=self.tol, generator=_generator(self.random_state))
        if found.right is None:
            raise InputError("no singular vectors", expected="a method that gives them")
        self.components_ = _signed(found.right.numpy()).T.astype(X.dtype)
        self.singular_values_ = found.values.numpy().astype(X.dtype)
        self.explained_variance_ = np.var(np.asarray(X @ self.components_.T), axis=0)
        square = wide.multiply(wide) if scipy.sparse.issparse(wide) else wide**2
        whole = float(np.sum(np.asarray(square.mean(axis=0)) - np.asarray(wide.mean(axis=0)) ** 2))
        self.explained_variance_ratio_ = self.explained_variance_ / whole if whole > 0 else np.zeros(k)
        return self

    def transform(self, X: Any) -> Array:
        """The coordinates (m, k) of the rows of X: X·components_ᵀ."""
        X = self._validated(X, reset=False)
        return np.asarray(X @ self.components_.T)

    def inverse_transform(self, X: Any) -> Array:
        """Rows (m, n) from their coordinates (m, k)."""
        check_is_fitted(self)
        return np.asarray(np.asarray(X) @ self.components_)


def _centred_triplets(X: Any, mean: Array, k: int, tol: float, random_state: Any) -> tuple[Array, Array, float]:
    """Singular values (k,) and right vectors (n, k) of X − 1μᵀ, and its Frobenius norm."""
    rows, cols = X.shape
    if scipy.sparse.issparse(X) and cols <= min(rows, MOST_COLUMNS):
        found = reduce_rows(Rows(SlicedRows(X)), k, centre="columns", tol=tol).spectrum
    elif scipy.sparse.issparse(X):
        operator = centred(Sparse(X), torch.from_numpy(mean))
        found = choose.svd(operator, k, tol=tol, generator=_generator(random_state))
    else:
        found = choose.svd(X - mean, k, tol=tol, generator=_generator(random_state))
    if found.right is None:
        raise InputError("no singular vectors", expected="a method that gives them")
    total = found.frobenius
    if total is None:
        squares = float(X.multiply(X).sum()) - rows * float(mean @ mean)
        total = float(np.sqrt(max(0.0, squares)))
    return found.values.numpy()[:k], found.right.numpy(), total


def _signed(right: Array) -> Array:
    """The vectors (n, k) with the entry of largest modulus positive."""
    largest = np.take_along_axis(right, np.abs(right).argmax(axis=0)[None], axis=0)
    return right * np.where(largest < 0, -1.0, 1.0)


def _count(asked: Any, limit: int, shape: tuple[int, int]) -> int:
    if isinstance(asked, bool) or not isinstance(asked, int | np.integer) or not 1 <= asked <= limit:
        raise InputError(
            f"n_components={asked!r} for n_samples={shape[0]}, n_features={shape[1]}",
            expected=f"an integer in 1…{limit}",
        )
    return int(asked)


def _generator(random_state: Any) -> torch.Generator:
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    return torch.Generator().manual_seed(seed)
