"""The estimators: scikit-learn's own checks, and its estimators' numbers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse

sklearn = pytest.importorskip("sklearn")

from sklearn import datasets, decomposition  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from eigenscope.sklearn import PCA, TruncatedSVD  # noqa: E402

DIGITS = datasets.load_digits().data
SPARSE = scipy.sparse.csr_array(DIGITS)


@pytest.mark.parametrize("estimator", [PCA(), PCA(0.5, whiten=True), TruncatedSVD()], ids=repr)
def test_scikit_learns_checks(estimator):
    results = check_estimator(estimator, on_skip=None, on_fail=None)
    assert len(results) > 40
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] not in ("passed", "skipped")}
    assert not failed
    assert {r["check_name"] for r in results if r["status"] == "skipped"} <= {"check_array_api_input"}


@pytest.mark.parametrize("X", [DIGITS, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("asked", [None, 7, 0.9])
@pytest.mark.parametrize("whiten", [False, True])
def test_pca_has_scikit_learns_numbers(X, asked, whiten):
    found = PCA(asked, whiten=whiten and asked == 7).fit(X)
    oracle = decomposition.PCA(asked, whiten=whiten and asked == 7, svd_solver="full").fit(DIGITS)
    k = 60 if asked is None else oracle.n_components_
    assert found.n_components_ == oracle.n_components_
    for name in ("explained_variance_", "explained_variance_ratio_", "singular_values_", "mean_"):
        ours, theirs = getattr(found, name), getattr(oracle, name)
        assert np.allclose(ours[:k], theirs[:k], rtol=1e-6), name
    assert found.noise_variance_ == pytest.approx(oracle.noise_variance_, rel=1e-6)
    assert np.allclose(found.components_[:k], oracle.components_[:k], atol=1e-6)
    few = found.transform(X)
    assert np.allclose(few[:, :k], oracle.transform(DIGITS)[:, :k], atol=1e-5)
    assert np.allclose(found.inverse_transform(few), oracle.inverse_transform(oracle.transform(DIGITS)), atol=1e-6)


def test_wide_sparse_data():
    X = scipy.sparse.random_array((25, 300), density=0.1, rng=np.random.default_rng(0)).tocsr()
    found, oracle = PCA(5).fit(X), decomposition.PCA(5, svd_solver="full").fit(X.toarray())
    assert np.allclose(found.components_, oracle.components_, atol=1e-8)
    assert np.allclose(found.explained_variance_ratio_, oracle.explained_variance_ratio_, rtol=1e-8)
    assert found.noise_variance_ == pytest.approx(oracle.noise_variance_, rel=1e-8)


@pytest.mark.parametrize("X", [DIGITS, SPARSE], ids=["dense", "sparse"])
def test_truncated_svd_has_scikit_learns_numbers(X):
    found = TruncatedSVD(6).fit(X)
    oracle = decomposition.TruncatedSVD(6, algorithm="arpack", random_state=0).fit(DIGITS)
    for name in ("explained_variance_", "explained_variance_ratio_", "singular_values_"):
        assert np.allclose(getattr(found, name), getattr(oracle, name), rtol=1e-6), name
    assert np.allclose(found.components_, oracle.components_, atol=1e-6)
    assert np.allclose(
        found.inverse_transform(found.transform(X)), oracle.inverse_transform(oracle.transform(X)), atol=1e-6
    )


def test_float32_stays_float32():
    found = PCA(3).fit(DIGITS.astype(np.float32))
    assert found.transform(DIGITS.astype(np.float32)).dtype == np.float32
    assert np.allclose(found.explained_variance_, PCA(3).fit(DIGITS).explained_variance_, rtol=1e-5)


def test_input_is_not_changed():
    X = DIGITS.copy()
    PCA(4).fit(X)
    TruncatedSVD(4).fit(X)
    assert np.array_equal(X, DIGITS)


@pytest.mark.parametrize("asked", [0, -1, 65, 1.5, 0.0, "some", True])
def test_numbers_of_components_that_cannot_be(asked):
    with pytest.raises(ValueError, match="n_components"):
        PCA(asked).fit(DIGITS)
    with pytest.raises(ValueError, match="n_components"):
        TruncatedSVD(asked).fit(DIGITS)


def test_in_a_pipeline_with_names():
    pipe = make_pipeline(StandardScaler(), PCA(2)).fit(DIGITS)
    assert list(pipe.get_feature_names_out()) == ["pca0", "pca1"]
    assert pipe.transform(DIGITS).shape == (1797, 2)


def test_without_scikit_learn_the_error_says_what_to_install():
    code = "import sys; sys.modules['sklearn.base'] = None; import eigenscope.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: eigenscope.sklearn needs scikit-learn")
