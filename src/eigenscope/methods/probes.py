"""Random probe vectors. Only the generator that is passed is drawn from, never torch's global one."""

from __future__ import annotations

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.operators.base import LinearOperator


def source(generator: torch.Generator | None) -> tuple[torch.Generator, int]:
    """The generator to draw from and its seed; a fresh one, seeded by the system, where None is given."""
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    return generator, generator.initial_seed()


def sphere(A: LinearOperator, count: int, generator: torch.Generator) -> Tensor:
    """(n, count) columns uniform on the unit sphere, real or complex as A is: normalised Gaussians."""
    block = gaussian(A, count, generator)
    unit: Tensor = block / torch.linalg.vector_norm(block, dim=0).clamp(min=torch.finfo(block.dtype).tiny)
    return unit


def gaussian(A: LinearOperator, count: int, generator: torch.Generator) -> Tensor:
    """(n, count) independent standard normal entries, in A's dtype and on its device."""
    shape = (A.shape[1], count)
    return torch.randn(shape, dtype=A.dtype, device=generator.device, generator=generator).to(A.device)


def signs(A: LinearOperator, count: int, generator: torch.Generator) -> Tensor:
    """(n, count) entries ±1 with equal chance, or for a complex map uniform on the unit circle.

    Of all entries that are independent, of mean 0 and variance 1, these of modulus 1 give xᴴAx the least variance:
    the diagonal of A adds nothing to it (Hutchinson, Commun. Statist. Simul. 18(3), 1989, Proposition 1).
    """
    shape = (A.shape[1], count)
    if not A.dtype.is_complex:
        coins = torch.randint(0, 2, shape, device=generator.device, generator=generator)
        return (2 * coins - 1).to(A.device, A.dtype)
    turns = torch.rand(shape, dtype=A.dtype.to_real(), device=generator.device, generator=generator)
    return torch.polar(torch.ones_like(turns), 2.0 * torch.pi * turns).to(A.device)


def check_count(value: int, name: str, least: int = 1) -> None:
    """Refuse a count below the least that makes sense.

    Raises:
        InputError: it is.
    """
    if not value >= least:
        raise InputError(f"{name} = {value}", expected=f"{name} ≥ {least}")
