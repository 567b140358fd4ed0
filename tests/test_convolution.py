"""The norm of a 2-D convolution against the dense matrix of the map itself, column by column, and planted truth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor, nn
from torch.nn import functional

import eigenscope as es
from eigenscope.errors import InputError
from eigenscope.methods import convolution
from eigenscope.methods.convolution import periodic_norm

Map = Callable[[Tensor], Tensor]
MARGIN = 1e-5
"""Relative: how far below the truth the docstring lets the norm be. On the square it is twice that."""


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices this small gain nothing from threads, and wait long for them where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=dtype)


def periodic(kernel: Tensor, groups: int = 1) -> Map:
    """The convolution with circular padding. By indices, as ``circular`` padding refuses to wrap more than once."""
    height, width = kernel.shape[2:]

    def apply(image: Tensor) -> Tensor:
        down = torch.arange(image.shape[2] + height - 1) % image.shape[2]
        across = torch.arange(image.shape[3] + width - 1) % image.shape[3]
        return functional.conv2d(image[:, :, down][..., across], kernel, groups=groups)

    return apply


def periodic_transposed(kernel: Tensor, groups: int, grid: int) -> Map:
    """The transposed convolution on a torus: what leaves the image at one side comes in at the other."""

    def apply(image: Tensor) -> Tensor:
        full = functional.conv_transpose2d(image, kernel, groups=groups)
        result = torch.zeros(*full.shape[:2], grid, grid, dtype=full.dtype)
        for row in range(full.shape[2]):
            for column in range(full.shape[3]):
                result[:, :, row % grid, column % grid] += full[:, :, row, column]
        return result

    return apply


def dense_norm(apply: Map, channels: int, grid: int, dtype: torch.dtype = torch.float64) -> float:
    """Largest singular value of the dense matrix whose columns are the images of the basis vectors."""
    size = channels * grid * grid
    with torch.no_grad():
        images = apply(torch.eye(size, dtype=dtype).reshape(size, channels, grid, grid))
    return float(torch.linalg.matrix_norm(images.reshape(size, -1), 2))


def certified(norm: float, expected: float) -> bool:
    """Never above the truth, and below it by no more than the margin."""
    return expected * (1.0 - MARGIN) <= norm <= expected * (1.0 + 1e-10)


def test_the_dense_twin_is_pytorchs_own_circular_convolution():
    module = nn.Conv2d(4, 6, (3, 5), groups=2, padding="same", padding_mode="circular", bias=False).double()
    shift = dense_norm(periodic(module.weight.detach(), 2), 4, 6)
    assert dense_norm(module, 4, 6) == pytest.approx(shift, rel=1e-12)


# out, in/groups, height, width, groups, grid
CASES = {
    "one entry": (1, 1, 1, 1, 1, 1),
    "one channel": (1, 1, 3, 3, 1, 5),
    "one channel, 5×3": (1, 1, 5, 3, 1, 6),
    "1×1": (4, 3, 1, 1, 1, 5),
    "1×1 in groups": (6, 2, 1, 1, 3, 4),
    "square, odd grid": (3, 3, 3, 3, 1, 5),
    "square, even grid": (3, 3, 3, 3, 1, 6),
    "wide": (2, 5, 3, 3, 1, 5),
    "tall": (5, 2, 3, 3, 1, 5),
    "5×3": (3, 4, 5, 3, 1, 6),
    "3×5": (4, 3, 3, 5, 1, 5),
    "2×2": (3, 3, 2, 2, 1, 4),
    "1×7": (3, 2, 1, 7, 1, 7),
    "as large as the grid": (2, 3, 4, 4, 1, 4),
    "larger than the grid": (2, 3, 7, 5, 1, 4),
    "larger than two grids": (3, 2, 9, 9, 1, 4),
    "a grid of two": (3, 4, 3, 3, 1, 2),
    "a grid of one": (3, 4, 3, 3, 1, 1),
    "two groups": (6, 2, 3, 3, 2, 5),
    "two groups, wide": (4, 5, 3, 3, 2, 4),
    "depthwise": (5, 1, 3, 3, 5, 5),
    "depthwise, two outputs each": (6, 1, 5, 3, 3, 5),
    "one group short of depthwise": (6, 2, 3, 3, 3, 4),
    "more channels": (40, 36, 3, 3, 1, 4),
    "more channels, wide, 5×3": (34, 40, 5, 3, 1, 4),
    "more channels, larger than the grid": (36, 36, 7, 5, 1, 3),
    "more channels in groups": (70, 36, 3, 3, 2, 3),
}  # fmt: skip


ROUTES = ("every frequency", "products", "autocorrelation")
"""Ways to the norm: all transfer matrices, or the strongest of those whose Gram matrices are found in two ways."""


def take(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every kernel go by one way, whatever its size."""
    monkeypatch.setattr(convolution, "SMALL", 10**9 if route == ROUTES[0] else 0)
    grams, count = convolution._grams, 0 if route == "products" else 10**9
    monkeypatch.setattr(convolution, "_grams", lambda kernel, _: grams(kernel, count))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_norm_is_that_of_the_dense_matrix(case, route, monkeypatch):
    take(route, monkeypatch)
    out, per_group, height, width, groups, grid = case
    kernel = gaussian(out, per_group, height, width, seed=1)
    expected = dense_norm(periodic(kernel, groups), per_group * groups, grid)
    norm = periodic_norm(kernel, grid, rng(), groups)
    if route == "every frequency":
        assert norm == pytest.approx(expected, rel=1e-11)
    else:
        assert certified(norm, expected)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("out", "into", "grid"), [(3, 4, 5), (4, 3, 4), (36, 34, 3)])
def test_complex_kernels_need_both_halves_of_the_spectrum(out, into, grid, route, monkeypatch):
    take(route, monkeypatch)
    kernel = gaussian(out, into, 3, 2, seed=2, dtype=torch.complex128)
    expected = dense_norm(periodic(kernel), into, grid, torch.complex128)
    assert certified(periodic_norm(kernel, grid, rng()), expected)
    one_sided = torch.exp(-2j * math.pi / 5 * torch.arange(3)).reshape(1, 1, 1, 3).to(torch.complex128)
    assert periodic_norm(one_sided, 5, rng()) == pytest.approx(3.0)
    assert periodic_norm(one_sided.conj(), 5, rng()) == pytest.approx(3.0)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("height", "width", "grid"), [(3, 3, 5), (5, 3, 4), (4, 2, 6), (1, 1, 3)])
def test_a_transposed_convolution_has_the_norm_of_its_adjoint(height, width, grid, groups):
    kernel = gaussian(6, 4, height, width, seed=3)
    expected = dense_norm(periodic_transposed(kernel, groups, grid), 6, grid)
    assert periodic_norm(kernel, grid, rng(), groups) == pytest.approx(expected, rel=1e-11)


def planted(channels: int, grid: int, lead: float, noise: float = 0.0, peak: tuple[int, int] = (2, 3)) -> Tensor:
    """An orthogonal matrix times a filter that passes every frequency with about 1, but one pair ±ω with 1 + lead."""
    response = 1.0 + noise * gaussian(grid, grid, seed=15)
    response[peak] = response[-peak[0], -peak[1]] = 1.0 + lead
    taps = torch.fft.ifft2(response).real
    orthogonal = torch.linalg.qr(gaussian(channels, channels, seed=4))[0]
    return orthogonal[:, :, None, None] * taps


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("grid", [4, 5])
@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_every_frequency_may_be_the_strongest(at_once, grid, route, monkeypatch):
    take(route, monkeypatch)
    monkeypatch.setattr(convolution, "BYTES_AT_ONCE", at_once * 3 * 3 * 16)
    for peak in itertools.product(range(grid), repeat=2):
        assert certified(periodic_norm(planted(3, grid, 0.5, peak=peak), grid, rng()), 1.5), peak


@pytest.mark.parametrize("channels", [4, 40])
@pytest.mark.parametrize("lead", [1e-1, 1e-3, 5e-5, 0.0])
def test_a_frequency_that_is_barely_the_strongest_is_found(channels, lead):
    assert certified(periodic_norm(planted(channels, 7, lead), 7, rng()), 1.0 + lead)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_both_ways_to_the_gram_matrices_agree_at_every_frequency(dtype):
    kernel = gaussian(5, 6, 3, 4, seed=14, dtype=dtype)
    frequencies = convolution._frequencies(7, True)
    transfer = convolution._transfer(kernel, frequencies)
    for count in (0, 10**9):
        found = convolution._grams(kernel, count)(frequencies).to(torch.complex128)
        torch.testing.assert_close(
            found, transfer @ transfer.mH, rtol=0.0, atol=1e-5 * float(transfer.abs().max()) ** 2
        )


@pytest.mark.parametrize("lead", [1.0, 1e-3, 2e-5])
def test_the_certificate_and_not_the_guess_decides(lead, monkeypatch):
    kernel = planted(40, 7, lead)
    # A guess that takes the strongest frequency for the weakest.
    monkeypatch.setattr(convolution, "_power", lambda gram, start: -torch.linalg.matrix_norm(gram).real)
    assert certified(periodic_norm(kernel, 7, rng()), 1.0 + lead)
    monkeypatch.setattr(convolution, "MARGIN", 1e3)
    assert periodic_norm(kernel, 7, rng()) == pytest.approx(1.0, abs=1e-12)


def test_known_norms():
    identity = torch.zeros(40, 40, 3, 3, dtype=torch.float64)
    identity[:, :, 1, 2] = torch.eye(40, dtype=torch.float64)
    assert certified(periodic_norm(identity, 6, rng()), 1.0)
    average = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)
    assert periodic_norm(average, 6, rng()) == pytest.approx(1.0)
    difference = torch.tensor([1.0, -1.0]).reshape(1, 1, 1, 2)
    assert periodic_norm(difference, 8, rng()) == pytest.approx(2.0)
    # Channels that all do the same: the norms of the matrix of ones and of the filter multiply.
    assert periodic_norm(difference.expand(5, 4, 1, 2), 8, rng()) == pytest.approx(2.0 * math.sqrt(20))


def test_another_grid_is_another_map():
    difference = torch.tensor([1.0, -1.0]).reshape(1, 1, 1, 2)
    # Only an even grid holds the alternating image that the difference doubles; a grid of one holds constants alone.
    norms = [periodic_norm(difference, grid, rng()) for grid in (1, 2, 3, 4, 5)]
    assert norms == pytest.approx([0.0, 2.0, math.sqrt(3), 2.0, 2 * math.cos(math.pi / 10)], abs=1e-12)
    # Signs in turn move the strongest frequency from 0 to (π, π), which no odd grid holds.
    kernel = gaussian(40, 36, 3, 3, seed=5) * torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]])
    coarse, fine, finer = (periodic_norm(kernel, grid, rng()) for grid in (3, 6, 12))
    # The frequencies of a grid are among those of its multiples.
    assert coarse * (1 + 1e-4) < fine < finer * (1 + MARGIN)
    assert periodic_norm(kernel, 5, rng()) != pytest.approx(fine, rel=1e-4)
    pointwise = gaussian(6, 5, 1, 1)
    assert periodic_norm(pointwise, 2, rng()) == periodic_norm(pointwise, 9, rng())


@pytest.mark.parametrize("scale", [1e-300, 1e-100, -1e-12, 1e100, 1e290])
@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (3, 4, 3, 3), (4, 4, 1, 1), (36, 34, 3, 3)])
def test_norm_scales_with_the_kernel(shape, scale):
    kernel = gaussian(*shape, seed=6)
    expected = abs(scale) * periodic_norm(kernel, 4, rng())
    assert periodic_norm(kernel * scale, 4, rng()) == pytest.approx(expected, rel=2e-5 if shape[0] > 32 else 1e-12)


@pytest.mark.parametrize("shape", [(3, 4, 3, 3), (40, 40, 3, 3), (4, 4, 1, 1), (8, 1, 3, 3)])
def test_the_zero_and_the_empty_kernel(shape):
    assert periodic_norm(torch.zeros(shape), 4, rng()) == 0.0
    assert periodic_norm(torch.zeros(0, *shape[1:]), 4, rng()) == 0.0
    assert periodic_norm(torch.zeros(shape[0], 0, *shape[2:]), 4, rng()) == 0.0


@pytest.mark.parametrize("weak", [0.0, 1e-30, 1e-6])
@pytest.mark.parametrize("first", [True, False])
def test_groups_of_very_different_size(weak, first):
    kernel = gaussian(68, 34, 3, 3, seed=7)
    strong = slice(34, 68) if first else slice(0, 34)
    kernel[:34] *= weak if first else 1.0
    kernel[34:] *= 1.0 if first else weak
    expected = dense_norm(periodic(kernel[strong]), 34, 3)
    assert certified(periodic_norm(kernel, 3, rng(), groups=2), expected)
    # Taken as one group it is another map.
    assert periodic_norm(gaussian(68, 34, 3, 3, seed=7), 3, rng()) > 1.05 * expected


@pytest.mark.parametrize(("out", "per_group", "height", "width", "groups", "grid"), [
    (6, 4, 3, 3, 1, 8), (4, 6, 5, 3, 1, 5), (40, 36, 3, 3, 1, 4), (6, 2, 3, 3, 3, 6), (5, 1, 3, 3, 5, 4), (6, 4, 1, 1, 1, 4),
])  # fmt: skip
@pytest.mark.parametrize("rank", [1, None])
def test_norm_lies_between_the_bounds_of_the_unfolded_kernels(out, per_group, height, width, groups, grid, rank):
    """On a grid no smaller than the kernel each output pixel sees distinct inputs, so that ‖J‖ is at least the norm of
    the weight unfolded over inputs, or (the adjoint) over outputs; it is at most √(hw) times the least of the four
    unfoldings (Singla & Feizi, Fantastic Four, ICLR 2021, Theorem 1)."""
    kernel = gaussian(out, per_group, height, width, seed=8)
    if rank == 1:
        kernel = torch.einsum("o,i,h,w->oihw", *(gaussian(size, seed=9) for size in kernel.shape))
    lower = upper = 0.0
    for part in kernel.reshape(groups, -1, per_group, height, width):
        unfolded = [
            part.flatten(1), part.permute(0, 2, 3, 1).flatten(0, 2),
            part.permute(0, 2, 1, 3).flatten(2).flatten(0, 1), part.permute(0, 3, 1, 2).flatten(2).flatten(0, 1),
        ]  # fmt: skip
        norms = [float(torch.linalg.matrix_norm(matrix, 2)) for matrix in unfolded]
        lower = max(lower, norms[0], norms[1])
        upper = max(upper, math.sqrt(height * width) * min(norms))
    norm = periodic_norm(kernel, grid, rng(), groups)
    assert lower * (1 - MARGIN) <= norm <= upper * (1 + 1e-10)
    if height == width == 1:
        assert lower == pytest.approx(upper)


def test_a_grid_smaller_than_the_kernel_may_fall_below_the_unfolded_norm():
    kernel = torch.tensor([1.0, 0.0, -1.0]).reshape(1, 1, 1, 3)
    assert periodic_norm(kernel, 2, rng()) == pytest.approx(0.0, abs=1e-15)
    assert periodic_norm(kernel, 4, rng()) >= math.sqrt(2)


@pytest.mark.parametrize(("out", "into", "height", "width", "grid"), [(12, 16, 5, 3, 33), (40, 36, 3, 3, 20)])
def test_power_iteration_on_a_grid_too_large_for_a_dense_matrix(out, into, height, width, grid):
    kernel = gaussian(out, into, height, width, seed=10)
    apply = periodic(kernel)

    def gram(vector: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(vector.reshape(1, into, grid, grid)).requires_grad_()
        half = apply(image).square().sum() / 2  # whose gradient is JᵀJ x
        return torch.autograd.grad(half, image)[0].numpy().ravel()

    size = into * grid * grid
    start = np.random.default_rng(11).standard_normal(size)
    norm = periodic_norm(kernel, grid, rng())
    x, below = start / np.linalg.norm(start), []
    for _ in range(30):
        y = gram(x)
        below.append(math.sqrt(x @ y))
        x = y / np.linalg.norm(y)
    assert below[0] < 0.9 * below[-1]
    assert 0.95 * norm < below[-1] <= norm * (1 + MARGIN)
    operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=gram, dtype=np.float64)
    largest = scipy.sparse.linalg.eigsh(operator, k=1, v0=start, tol=1e-8, return_eigenvectors=False)[0]
    assert norm == pytest.approx(math.sqrt(largest), rel=MARGIN)


def test_same_seed_same_bits_and_nothing_else_is_touched():
    # So many frequencies within the margin that the start decides which of them is decomposed.
    kernel = planted(48, 8, 0.0, noise=3e-7)
    before, state = kernel.clone(), torch.random.get_rng_state()
    first, second, *others = (periodic_norm(kernel, 8, rng(seed)) for seed in (0, 0, *range(1, 10)))
    assert first == second
    assert set(others) != {first}
    assert others == pytest.approx([first] * 9, rel=MARGIN)
    assert torch.equal(kernel, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_formats_are_read_exactly(dtype):
    kernel = gaussian(5, 4, 3, 3, seed=13).to(dtype)
    assert periodic_norm(kernel, 5, rng()) == periodic_norm(kernel.double(), 5, rng())


def test_what_is_no_kernel_is_refused():
    with pytest.raises(InputError, match=r"\(3, 4, 5\).*expected \(out, in/groups, height, width\)"):
        periodic_norm(torch.zeros(3, 4, 5), 4, rng())
    for groups in (0, -2, 4):
        with pytest.raises(InputError, match=f"{groups} groups.*divisor"):
            periodic_norm(torch.zeros(6, 4, 3, 3), 4, rng(), groups)


GRID = 6


class Convolutions(nn.Module):
    """One of each kind, bias and all; weights drawn from a seed."""

    def __init__(self) -> None:
        super().__init__()
        same = {"padding": "same", "padding_mode": "circular"}
        self.plain = nn.Conv2d(3, 5, 3, **same)
        self.oblong = nn.Conv2d(4, 2, (5, 3), **same)
        self.pointwise = nn.Conv2d(4, 6, 1)
        self.grouped = nn.Conv2d(6, 4, 3, groups=2, **same)
        self.depthwise = nn.Conv2d(4, 8, 3, groups=4, **same)
        self.single = nn.Conv2d(1, 3, 3, **same)
        self.large = nn.Conv2d(34, 36, 3, **same)
        self.normalised = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3, groups=2, **same))
        self.up = nn.ConvTranspose2d(5, 3, 3)
        self.up_grouped = nn.ConvTranspose2d(4, 6, (4, 2), groups=2)
        self.up_depthwise = nn.ConvTranspose2d(4, 4, 3, groups=4)
        self.line = nn.Conv1d(3, 4, 3)
        self.volume = nn.Conv3d(2, 3, 3)
        self.linear = nn.Linear(4, 4)
        for seed, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, generator=rng(100 + seed))

    def expected(self, name: str, grid: int = GRID) -> float:
        """Norm of a module as PyTorch computes it, without its bias."""
        module = getattr(self, name)
        if isinstance(module, nn.ConvTranspose2d):
            return dense_norm(periodic_transposed(module.weight, module.groups, grid), module.in_channels, grid)
        shift = module(torch.zeros(1, module.in_channels, grid, grid, dtype=torch.float64))
        return dense_norm(lambda images: module(images) - shift, module.in_channels, grid)


def conv_norms(source: object, **options: object) -> dict[str, float | None]:
    """Name of each module → conv_norm; None where the table is empty."""
    table = es.scan(source, **options).table
    assert set(table["status"]) == {"ok"}
    names = [name.removesuffix(".parametrizations.weight.original1").removesuffix(".weight") for name in table["name"]]
    return {
        name: None if value is None or math.isnan(value) else float(value)
        for name, value in zip(names, table["conv_norm"], strict=True)
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scan_of_a_module_states_the_norm_of_the_modules_own_map(dtype):
    network = Convolutions().double().to(dtype)
    norms = conv_norms(network, conv_grid=GRID)
    others = {"line", "volume", "linear"}
    assert {name for name, norm in norms.items() if norm is None} == others
    assert len(norms) == 14
    # In double precision, with the entries that were stored; a normalised weight is multiplied out in single.
    network = network.double()
    for name in norms.keys() - others - {"normalised"}:
        assert norms[name] == pytest.approx(network.expected(name), rel=2e-5 if name == "large" else 1e-11), name
    assert norms["normalised"] == pytest.approx(network.expected("normalised"), rel=1e-5)


def test_scan_without_the_modules_does_not_guess_groups():
    state = Convolutions().double().state_dict()
    scan = es.scan(state, conv_grid=GRID)
    table, coverage = scan.table.set_index("name"), scan.coverage.set_index("tensor")
    for name in ("depthwise", "single", "up_depthwise"):
        assert math.isnan(table.loc[f"{name}.weight", "conv_norm"])
        assert "groups not known" in coverage.loc[f"{name}.weight", "reason"]
    expected = dense_norm(periodic(state["plain.weight"]), 3, GRID)
    assert table.loc["plain.weight", "conv_norm"] == pytest.approx(expected, rel=1e-11)
    # Groups of several inputs leave no trace in the shape: the row is that of one group, and the coverage says so.
    assert "taken as one group" in coverage.loc["grouped.weight", "reason"]
    as_one = dense_norm(periodic(state["grouped.weight"]), 3, GRID)
    assert table.loc["grouped.weight", "conv_norm"] == pytest.approx(as_one, rel=1e-11)
    assert as_one > 1.01 * Convolutions().double().expected("grouped")


def test_scan_states_the_grid_that_was_asked_for():
    network = Convolutions().double()
    norms, others = conv_norms(network, conv_grid=GRID), conv_norms(network, conv_grid=5)
    assert norms["pointwise"] == others["pointwise"]
    for name in ("plain", "grouped", "depthwise", "up", "up_grouped"):
        assert others[name] == pytest.approx(network.expected(name, 5), rel=1e-11), name
    differing = {name for name, norm in norms.items() if norm and abs(norm - others[name]) > 1e-3 * norm}
    assert differing >= {"plain", "grouped", "depthwise"}
    assert es.scan(network, conv_grid=5).run.provenance["conv_grid"] == 5
    for grid in (0, 513):
        with pytest.raises(InputError, match=f"grid {grid}; expected 1 to 512"):
            es.scan(network, conv_grid=grid)


def test_scan_gives_the_same_bits_in_any_order():
    tensors = {f"{channels}.weight": planted(channels, 8, 0.0, noise=3e-7) for channels in range(34, 40)}
    one, three = (conv_norms(tensors, conv_grid=8, workers=workers) for workers in (1, 3))
    other = conv_norms(tensors, conv_grid=8, seed=1)
    assert one == three != other
    assert [other[name] for name in one] == pytest.approx(list(one.values()), rel=MARGIN)
