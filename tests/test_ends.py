"""Both ends of a spectrum by one Lanczos recurrence: when it stops, what it keeps in little memory, what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eigenscope as es
from cases import Diagonal
from eigenscope.errors import ConvergenceWarning
from eigenscope.methods import ends as method
from eigenscope.methods.ends import ends

# Five wanted values, a sixth close below them, and a bulk: the Hessian of a small network on digits.
DIGITS = torch.cat([
    torch.tensor([2.3755, 1.9378, 1.7858, 1.3155, 1.0331, 1.015, 0.6025, 0.4749, 0.40, 0.36, 0.31, 0.28, 0.24, 0.2]),
    0.18 * 0.97 ** torch.arange(200.0), -0.02 * 0.95 ** torch.arange(80.0), torch.zeros(106),
]).double()  # fmt: skip


def wrong(seeds: range) -> tuple[int, int]:
    """Searches that ended with a wrong value, and the most products that one took."""
    missed, most = 0, 0
    true = DIGITS.sort(descending=True).values[:5]
    for seed in seeds:
        found = ends(Diagonal(DIGITS), 5, 0, tol=1e-3, generator=torch.Generator().manual_seed(seed)).top
        missed += float((found.values - true).abs().max()) > 1e-3 * float(true[0])
        most = max(most, found.products)
    return missed, most


def test_a_value_that_the_start_has_little_of_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    missed, most = wrong(range(100))
    assert missed <= 1
    assert most <= 24
    monkeypatch.setattr(method, "MARGIN", 1.0)  # to stop at the first sight of five small residuals is to miss some
    assert wrong(range(100))[0] >= 4


@pytest.mark.parametrize("basis", [16, 20, 21, 60])
def test_little_memory_changes_the_products_and_not_the_pairs(basis: int) -> None:
    A = Diagonal(DIGITS)
    found = ends(A, 5, 5, tol=1e-5, basis=basis, max_products=1000, generator=torch.Generator().manual_seed(3))
    assert found.finished
    ascending = DIGITS.sort().values
    for part, true in ((found.top, ascending[-5:].flip(0)), (found.bottom, ascending[:5].flip(0))):
        assert part.right is not None
        assert part.residuals is not None
        torch.testing.assert_close(part.values, true, rtol=0.0, atol=1e-8)
        images = torch.linalg.vector_norm(A @ part.right - part.right * part.values, dim=0)
        torch.testing.assert_close(part.residuals, images, rtol=0.0, atol=1e-12)
        torch.testing.assert_close(part.right.T @ part.right, torch.eye(5, dtype=torch.float64), rtol=0.0, atol=1e-12)


def bowl(model: nn.Module, batch: Any) -> Tensor:
    """½ Σ λᵢ xᵢ², the Hessian of which is diagonal."""
    return 0.5 * (DIGITS * model.weight.reshape(-1) ** 2).sum()


def of_bowl() -> es.LinearOperator:
    return es.hessian(nn.Linear(1, len(DIGITS), bias=False).double(), bowl, [torch.zeros(1)], count=len)


@pytest.mark.parametrize(("which", "top", "bottom"), [("LA", 5, 0), ("SA", 0, 5), ("both", 3, 2)])
def test_eigenpairs_of_a_loss_take_this_way(which: Any, top: int, bottom: int) -> None:
    H = of_bowl()
    H.products = 0
    found = es.eigh(H, 5, which=which, tol=1e-8, generator=torch.Generator().manual_seed(5))
    descending = DIGITS.sort(descending=True).values
    true = torch.cat([descending[:top], descending[len(DIGITS) - bottom :]])
    torch.testing.assert_close(found.values, true, rtol=0.0, atol=1e-8)
    assert found.products == H.products
    assert bool(found.converged.all())
    assert found.right is not None
    assert tuple(found.right.shape) == (len(DIGITS), 5)


def test_what_did_not_converge_is_flagged_and_told() -> None:
    with pytest.warns(ConvergenceWarning, match="5 of 5 pairs .* after 9 products; raise max_products or tol"):
        found = method.eigenpairs(Diagonal(DIGITS), 5, "LA", tol=1e-9, max_products=9)
    assert not bool(found.converged.any())
    assert found.products == 9


def test_an_interrupt_is_no_result() -> None:
    with pytest.raises(KeyboardInterrupt):
        method.eigenpairs(Diagonal(DIGITS, stop=12), 5, "LA", tol=1e-9)
    kept = ends(Diagonal(DIGITS, stop=12), 5, 0, tol=1e-9)
    assert not kept.finished
    assert kept.top.products == 13  # the interrupted one too: it was paid for
    assert kept.top.right is not None
    assert kept.top.residuals is not None
    vectors = kept.top.right
    images = torch.linalg.vector_norm(DIGITS[:, None] * vectors - vectors * kept.top.values, dim=0)
    torch.testing.assert_close(kept.top.residuals, images, rtol=1e-8, atol=1e-12)
