"""The operator norm of a 2-D convolution, which is not the norm of its unfolded weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eigenscope.errors import InputError

SMALL = 32
"""Up to this many channels every frequency is decomposed; above it, only those that may hold the norm."""
MARGIN = 2e-5
"""Relative to σ², what single precision may hide from the test that no frequency is stronger."""
BYTES_AT_ONCE = 2**25
POWER_STEPS = 6


def periodic_norm(kernel: Tensor, grid: int, generator: torch.Generator, groups: int = 1) -> float:
    """Largest singular value of the convolution with circular padding, stride 1 and no dilation on a grid × grid image.

    The map is block-diagonal in the Fourier basis: its singular values are those of the (out, in) transfer matrices
    T(ω) = Σ_p K[:, :, p] e^{−iω·p}, one per frequency ω (Sedghi, Gupta & Long, The singular values of convolutional
    layers, ICLR 2019, Theorem 6). The result is ‖T(ω)‖₂ in double precision at the strongest frequency. With more
    than ``SMALL`` channels only some are decomposed: the others are shown to be weaker than the result σ, up to
    ``MARGIN``, by a Cholesky factorisation of σ²I − T(ω)T(ω)ᴴ, which exists only for a positive definite matrix
    (Golub & Van Loan, Matrix Computations, 4th ed., §4.2.7).

    Args:
        kernel: (out, in/groups, height, width).
        grid: height and width of the image.
        generator: draws the start of the power steps that guess which frequency to decompose first.
        groups: of the convolution; the norm is the largest of theirs.

    Raises:
        InputError: the groups do not divide the outputs, or the kernel has no two spatial dimensions.
    """
    if kernel.ndim != 4:
        raise InputError(f"kernel of shape {tuple(kernel.shape)}", expected="(out, in/groups, height, width)")
    if groups < 1 or kernel.shape[0] % groups:
        raise InputError(f"{groups} groups", where=f"kernel {tuple(kernel.shape)}", expected="a divisor of the outputs")
    if not kernel.numel():
        return 0.0
    kernel = kernel.to(torch.complex128 if kernel.is_complex() else torch.float64)
    scale = float(kernel.abs().max())
    if scale == 0.0:
        return 0.0
    # Entries near 1: no square overflows or vanishes in single precision.
    folded = _folded(_folded(kernel / scale, 2, grid), 3, grid)
    parts = folded.reshape(groups, -1, *folded.shape[1:])
    if parts.shape[1] > parts.shape[2]:  # transposed, each has the same norm
        parts = parts.transpose(1, 2)
    if parts.shape[3:] == (1, 1):  # the same transfer matrix at every frequency
        return scale * float(torch.linalg.matrix_norm(parts[..., 0, 0], 2).max())
    frequencies = _frequencies(grid, kernel.is_complex())
    if parts.shape[1] <= SMALL:
        return scale * _of_all(parts, frequencies)
    strongest = 0.0
    # The largest group first, so that few frequencies of the others have to be decomposed.
    for part in parts[torch.linalg.vector_norm(parts.flatten(1), dim=1).argsort(descending=True)]:
        strongest = _of_strongest(part, frequencies, generator, strongest)
    return scale * strongest


def _folded(kernel: Tensor, axis: int, grid: int) -> Tensor:
    """The kernel with at most ``grid`` taps along an axis: those a multiple of the grid apart meet the same pixel."""
    slices = torch.split(kernel, grid, dim=axis)
    folded = slices[0].clone()
    for piece in slices[1:]:
        folded.narrow(axis, 0, piece.shape[axis]).add_(piece)
    return folded


def _frequencies(grid: int, every: bool) -> Tensor:
    """(f, 2) angles; of each pair ±ω one suffices for a real kernel, whose transfer matrices there are conjugate."""
    index = torch.cartesian_prod(torch.arange(grid), torch.arange(grid if every else grid // 2 + 1))
    return index.to(torch.float64) * (2.0 * torch.pi / grid)


def _transfer(parts: Tensor, frequencies: Tensor, dtype: torch.dtype = torch.complex128) -> Tensor:
    """(f, …, out, in) transfer matrices of kernels (…, out, in, height, width)."""
    height, width = parts.shape[-2:]
    taps = parts.reshape(-1, height * width).to(dtype)
    waves = _waves(frequencies, torch.arange(height), torch.arange(width)).to(dtype)
    return (waves @ taps.T).reshape(-1, *parts.shape[:-2])


def _waves(frequencies: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(f, positions) factors e^{−iω·p}."""
    positions = torch.cartesian_prod(down, across).reshape(-1, 2).to(torch.float64)
    return torch.exp(-1j * (frequencies @ positions.T))


def _of_all(parts: Tensor, frequencies: Tensor) -> float:
    """The largest ‖T(ω)‖₂ of all groups and frequencies."""
    each = max(1, BYTES_AT_ONCE // (parts[..., 0, 0].numel() * 16))
    norms = []
    for some in torch.split(frequencies, each):
        transfer = _transfer(parts, some)
        if parts.shape[1] == 1:
            norms.append(float(torch.linalg.vector_norm(transfer, dim=-1).max()))
        else:
            norms.append(float(torch.linalg.eigvalsh(transfer @ transfer.mH)[..., -1].max().clamp(min=0).sqrt()))
    return max(norms)


def _of_strongest(kernel: Tensor, frequencies: Tensor, generator: torch.Generator, strongest: float) -> float:
    """The larger of ``strongest`` and the largest ‖T(ω)‖₂ of one group (out ≤ in)."""
    gram, out = _grams(kernel, len(frequencies)), kernel.shape[0]
    each = max(1, BYTES_AT_ONCE // (out * out * 8))
    start = torch.randn(out, 1, generator=generator).to(torch.complex64)
    guesses = torch.cat([_power(gram(some), start) for some in torch.split(frequencies, each)])
    identity = torch.eye(out, dtype=torch.complex64)
    # The likely strongest first, so that few others have to be decomposed.
    for some in torch.split(frequencies[guesses.argsort(descending=True)], each):
        product = gram(some)
        suspects = torch.arange(len(some))
        while len(suspects):
            bound = strongest**2 * (1.0 + MARGIN)
            suspects = suspects[torch.linalg.cholesky_ex(bound * identity - product[suspects]).info > 0]
            if len(suspects):
                transfer = _transfer(kernel, some[suspects[:1]])[0]
                norm = torch.linalg.eigvalsh(transfer @ transfer.mH)[-1].clamp(min=0).sqrt()
                strongest, suspects = max(strongest, float(norm)), suspects[1:]
    return strongest


def _grams(kernel: Tensor, count: int) -> Callable[[Tensor], Tensor]:
    """Frequencies → (f, out, out) T(ω)T(ω)ᴴ in single precision, by the cheaper way for ``count`` of them."""
    out, _, height, width = kernel.shape
    if height * width * (2 * height - 1) * (2 * width - 1) > 4 * count:

        def product(some: Tensor) -> Tensor:
            transfer = _transfer(kernel, some, torch.complex64)
            return transfer @ transfer.mH

        return product
    # T(ω)T(ω)ᴴ = Σ_d R_d e^{−iω·d}: the autocorrelation R of a small kernel costs less than a product at every frequency.
    narrow = kernel.to(torch.complex64 if kernel.is_complex() else torch.float32)
    correlation = torch.nn.functional.conv2d(narrow, narrow.conj(), padding=(height - 1, width - 1))
    correlation = correlation.reshape(out * out, -1).to(torch.complex64)
    down, across = torch.arange(1 - height, height), torch.arange(1 - width, width)
    return lambda some: (_waves(some, down, across).to(torch.complex64) @ correlation.T).reshape(-1, out, out)


def _power(gram: Tensor, start: Tensor) -> Tensor:
    """(f,) estimates of ‖T(ω)‖₂² from below, all frequencies at once."""
    x = start.expand(len(gram), -1, 1)
    for _ in range(POWER_STEPS):
        x = gram @ x
        x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    norms: Tensor = torch.linalg.vector_norm(gram @ x, dim=(1, 2))
    return norms
