"""Principal components against scikit-learn's, dense, sparse and streamed; and the number of them that is suggested."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import torch

from cases import gaussian
from eigenscope.errors import InputError
from eigenscope.measures import noise
from eigenscope.operators import streamed
from eigenscope.tasks.decompose import decompose

datasets = pytest.importorskip("sklearn.datasets")
decomposition = pytest.importorskip("sklearn.decomposition")
NAMES = ("digits", "wine", "breast_cancer")


def data(name):
    return getattr(datasets, f"load_{name}")().data


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    """A data set and scikit-learn's components of it."""
    X = data(request.param)
    return X, decomposition.PCA(svd_solver="full").fit(X)


def test_components_are_scikit_learns(pair):
    X, oracle = pair
    k = 5
    found = decompose(X, pca=True, k=k)
    c = found.components
    assert np.allclose(c.explained_variance[:k], oracle.explained_variance_[:k], rtol=1e-6)
    assert np.allclose(c.explained_variance_ratio[:k], oracle.explained_variance_ratio_[:k], rtol=1e-6)
    assert np.allclose(c.loadings.numpy(), oracle.components_[:k].T, atol=1e-6)
    assert np.allclose(c.scores.numpy(), oracle.transform(X)[:, :k], atol=1e-6 * np.abs(X).max())
    assert np.allclose(c.mean.numpy(), oracle.mean_, rtol=1e-12)
    assert c.total_variance == pytest.approx(X.var(axis=0, ddof=1).sum(), rel=1e-10)


@pytest.fixture
def short_blocks(monkeypatch):
    """Several blocks even of small matrices."""
    monkeypatch.setattr(streamed, "BLOCK_BYTES", 8 * 64 * 10)


def test_sparse_and_streamed_components_are_the_dense_ones(pair, tmp_path, short_blocks):
    X, oracle = pair
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "f.npy", np.asfortranarray(X))
    ways = {
        "sparse": decompose(scipy.sparse.csr_array(X), pca=True, k=4),
        "by rows": decompose(tmp_path / "a.npy", pca=True, k=4, passes=2),
        "one pass": decompose(tmp_path / "a.npy", pca=True, k=4, passes=1),
        "columns together": decompose(tmp_path / "f.npy", pca=True, k=4, passes=2),
    }
    for name, found in ways.items():
        c = found.components
        assert np.allclose(c.explained_variance[:4], oracle.explained_variance_[:4], rtol=1e-6), name
        assert np.allclose(c.loadings.numpy(), oracle.components_[:4].T, atol=1e-6), name
        assert np.allclose(c.mean.numpy(), oracle.mean_, rtol=1e-12), name
        if name != "one pass":
            assert np.allclose(c.scores.numpy(), oracle.transform(X)[:, :4], atol=1e-6 * np.abs(X).max()), name
    assert ways["one pass"].components.scores is None
    assert ways["by rows"].provenance["passes"] == 2
    assert ways["one pass"].provenance["passes"] == 1


def test_wide_sparse_data_is_centred_too():
    X = scipy.sparse.random_array((30, 200), density=0.2, rng=np.random.default_rng(3)) * 4
    found = decompose(scipy.sparse.csr_array(X), pca=True, k=6)
    oracle = decomposition.PCA(6, svd_solver="full").fit(X.toarray())
    assert np.allclose(found.components.explained_variance[:6], oracle.explained_variance_, rtol=1e-8)
    assert np.allclose(found.components.explained_variance_ratio[:6], oracle.explained_variance_ratio_, rtol=1e-8)
    assert np.allclose(found.components.loadings.numpy(), oracle.components_.T, atol=1e-8)


def test_digits_need_21_29_and_41_components_of_rank_61(tmp_path):
    found = decompose(data("digits"), pca=True)
    assert found.components.needed == {90: 21, 95: 29, 99: 41}
    assert found.readings["numerical_rank"] == 61
    # The Gram route tells no more than √eps·σ₁ from 0, and counts nothing below.
    np.save(tmp_path / "a.npy", data("digits"))
    assert decompose(tmp_path / "a.npy", passes=1).readings["numerical_rank"] == 61
    assert decompose(data("digits"), pca=True, energy=0.95).components.loadings.shape == (64, 29)


@pytest.mark.parametrize("shift", [0.0, 1e6])
@pytest.mark.parametrize("way", ["dense", "sparse", "rows"])
def test_a_far_mean_costs_no_component(way, shift, tmp_path, short_blocks):
    """The Gram matrix less mμμᵀ would lose 12 digits here."""
    truth = np.array([5.0, 3.0, 2.0, 1.0])
    scores = torch.linalg.qr(gaussian(500, 4, 4) - gaussian(500, 4, 4).mean(dim=0))[0]
    X = (scores * torch.from_numpy(truth)).numpy() + shift
    np.save(tmp_path / "a.npy", X)
    source = {"dense": X, "sparse": scipy.sparse.csr_array(X), "rows": tmp_path / "a.npy"}[way]
    found = decompose(source, pca=True, k=4, passes=2 if way == "rows" else None)
    assert np.allclose(found.values, truth, rtol=1e-9 if shift == 0 else 1e-7)


def planted(rows, cols, strengths, seed):
    rng = np.random.default_rng(seed)
    signal = sum(
        s * np.outer(rng.standard_normal(rows), rng.standard_normal(cols)) / np.sqrt(rows * cols) for s in strengths
    )
    return signal + rng.standard_normal((rows, cols)) / np.sqrt(rows) + 7.0


@pytest.mark.parametrize("shape", [(400, 100), (100, 400)])
def test_the_suggested_number_is_the_planted_one(shape):
    found = decompose(
        planted(*shape, [6.0, 5.0, 4.0] if shape[0] > shape[1] else [12.0, 10.0, 8.0], 5), pca=True
    ).components
    assert found.suggested == 3
    assert "Johnstone" in found.method
    assert "Gavish" in found.method
    assert decompose(planted(*shape, [], 6), pca=True).components.suggested == 0


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_the_edge_is_that_of_one_observation_less(shape):
    """Rows turned so that the first is the mean leave m − 1 rows of noise, and their values are those of the centred data."""
    X = np.random.default_rng(8).standard_normal(shape) + 3.0
    turned = scipy.linalg.null_space(np.ones((1, shape[0]))).T @ X
    law = noise.fit_noise(np.linalg.svd(turned, compute_uv=False), turned.shape)
    assert decompose(X, pca=True).components.noise_edge == pytest.approx(law.edge, rel=1e-10)


def test_no_number_is_suggested_where_the_spectrum_is_no_noise():
    X = np.random.default_rng(7).standard_normal((200, 50)) * np.logspace(0, -6, 50)
    assert decompose(X, pca=True).components.suggested is None
    assert decompose(data("wine"), pca=True).components.suggested is None  # thirteen values are too few


def test_complex_scores_rebuild_the_data():
    X = gaussian(40, 6, 8, torch.complex128) + (2 - 1j)
    c = decompose(X, pca=True, k=6).components
    assert torch.allclose(c.scores @ c.loadings.mH + c.mean, X, atol=1e-12)
    assert torch.allclose(c.scores.mean(dim=0), torch.zeros(6, dtype=torch.complex128), atol=1e-12)
    largest = c.loadings.gather(0, c.loadings.abs().argmax(dim=0, keepdim=True))
    assert torch.allclose(largest.imag, torch.zeros(1, 6, dtype=torch.float64), atol=1e-15)
    assert bool((largest.real > 0).all())


def test_constant_data_have_no_variance():
    c = decompose(np.full((9, 3), 4.0), pca=True).components
    assert c.total_variance == 0.0
    assert not c.explained_variance_ratio.any()


def test_one_row_has_no_components():
    with pytest.raises(InputError, match="two rows"):
        decompose(np.ones((1, 5)), pca=True)
