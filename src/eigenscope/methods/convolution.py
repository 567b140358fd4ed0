"""The operator norm of a 2-D convolution, which is not the norm of its unfolded weight."""

from __future__ import annotations

import torch
from torch import Tensor

from eigenscope.errors import InputError

SCREENING_STEPS = 10
EXAMINED = 6
BYTES_AT_ONCE = 2**26


def periodic_norm(kernel: Tensor, grid: int, generator: torch.Generator, groups: int = 1) -> float:
    """Largest singular value of the convolution with circular padding and stride 1 on a grid × grid image.

    The map is block-diagonal in the Fourier basis: its singular values are those of the (out, in) transfer matrices
    Σ_p K[:, :, p] e^{−iω·p}, one per frequency ω (Sedghi, Gupta & Long, The singular values of convolutional layers,
    ICLR 2019, Theorem 6). A few power steps at every frequency find the strongest ones, whose norms are then computed
    to full accuracy; the result is the norm at a true frequency and so never exceeds the operator norm.

    Args:
        kernel: (out, in/groups, height, width), real.
        grid: height and width of the image.
        generator: draws the start of the power steps.
        groups: of the convolution; the norm is the largest of theirs.

    Raises:
        InputError: the groups do not divide the outputs.
    """
    if groups < 1 or kernel.shape[0] % groups:
        raise InputError(f"{groups} groups", where=f"kernel {tuple(kernel.shape)}", expected="a divisor of the outputs")
    frequencies = _frequencies(grid)[: 1 if kernel.shape[2:] == (1, 1) else None]
    parts = kernel.reshape(groups, -1, *kernel.shape[1:])
    if 1 in parts.shape[1:3]:
        # One output or one input: a transfer matrix is a vector, and its norm needs no iteration.
        taps = parts.to(torch.complex128).reshape(-1, parts.shape[3] * parts.shape[4])
        waves = _waves(frequencies, kernel, torch.complex128)
        lengths = torch.linalg.vector_norm((waves @ taps.T).reshape(len(waves), groups, -1), dim=2)
        return float(lengths.max())
    return max(_norm_of_group(part, frequencies, generator) for part in parts)


def _norm_of_group(kernel: Tensor, frequencies: Tensor, generator: torch.Generator) -> float:
    out, inputs = kernel.shape[:2]
    each = max(1, BYTES_AT_ONCE // (out * inputs * 8))
    taps = kernel.to(torch.complex64).reshape(out * inputs, -1)
    vector = torch.randn(inputs, generator=generator).to(torch.complex64)
    estimates = []
    for start in range(0, len(frequencies), each):
        waves = _waves(frequencies[start : start + each], kernel, torch.complex64)
        estimates.append(_power((waves @ taps.T).reshape(-1, out, inputs), vector))
    strongest = torch.cat(estimates).argsort(descending=True)[:EXAMINED]
    waves = _waves(frequencies[strongest], kernel, torch.complex128)
    taps = kernel.to(torch.complex128).reshape(out * inputs, -1)
    return max(float(torch.linalg.svdvals((wave @ taps.T).reshape(out, inputs))[0]) for wave in waves)


def _frequencies(grid: int) -> Tensor:
    """(f, 2) angles; of each pair ±ω one suffices, since a real kernel has conjugate transfer matrices there."""
    index = torch.cartesian_prod(torch.arange(grid), torch.arange(grid // 2 + 1))
    return index.to(torch.float64) * (2.0 * torch.pi / grid)


def _waves(frequencies: Tensor, kernel: Tensor, dtype: torch.dtype) -> Tensor:
    """(f, height·width) factors e^{−iω·p} of the kernel's positions p."""
    height, width = kernel.shape[2:]
    positions = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(torch.float64)
    return torch.exp(-1j * (frequencies @ positions.reshape(-1, 2).T)).to(dtype)


def _power(transfer: Tensor, vector: Tensor) -> Tensor:
    """(f,) estimates of ‖T(ω)‖₂ from below, all frequencies at once."""
    x = vector.expand(len(transfer), -1).unsqueeze(-1)
    x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
    norm = torch.zeros(len(transfer))
    for _ in range(SCREENING_STEPS):
        y = transfer @ x
        norm = torch.linalg.vector_norm(y, dim=(1, 2))
        x = transfer.mH @ y
        x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return norm
