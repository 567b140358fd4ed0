"""Layers that hold a low-rank map by some of its outputs and the combinations that give the others.

A map of rank r has r outputs of which every other one is a fixed combination. Holding those r rows and the (m − r)×r
coefficients takes r(m + n − r) numbers where two plain factors take r(m + n): the r² that any choice of basis
leaves free are spent on nothing (Zhao et al., PIFA, ICML 2025; interpolative decomposition: Cheng, Gimbutas,
Martinsson & Rokhlin, SIAM J. Sci. Comput. 26(4), 2005). It never takes more than the dense matrix does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from eigenscope.errors import InputError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Interpolative:
    """A low-rank matrix W (m, n) as rows and combinations: W[order⁻¹] = [down; up @ down].

    Attributes:
        down: (r, n) rows of W.
        up: (m − r, r) coefficients of the other rows.
        order: (m,) place of each row of W in [down; up @ down].
    """

    down: Tensor
    up: Tensor
    order: Tensor

    def to_dense(self) -> Tensor:
        """W (m, n)."""
        return torch.cat([self.down, self.up @ self.down])[self.order.long()]


class _LowRank(nn.Module):
    """``down`` gives r outputs, ``up`` the others from them, ``order`` puts them where the dense layer has them."""

    down: Any
    up: Any
    order: Tensor
    bias: nn.Parameter | None

    def _hold(self, outputs: int, bias: bool, device: torch.device | None, dtype: torch.dtype | None) -> None:
        self.register_buffer("order", torch.arange(outputs, dtype=torch.int32, device=device))
        self.bias = nn.Parameter(torch.zeros(outputs, device=device, dtype=dtype)) if bias else None

    @property
    def rank(self) -> int:
        """Rank r that the layer can hold."""
        return int(self.down.weight.shape[0])

    @property
    def factors(self) -> Interpolative:
        """The matrix as it is held; the kernels of a convolution flattened to (r, in·k…)."""
        return Interpolative(self.down.weight.flatten(1), self.up.weight.flatten(1), self.order)

    @torch.no_grad()
    def load(self, factors: Interpolative, bias: Tensor | None) -> None:
        """Take over factors and bias; shapes must agree.

        Raises:
            InputError: they do not.
        """
        for held, given in (
            (self.down.weight, factors.down),
            (self.up.weight, factors.up),
            (self.order, factors.order),
        ):
            if held.numel() != given.numel():
                raise InputError(f"factor {tuple(given.shape)}", where=repr(self), expected=f"{tuple(held.shape)}")
            held.copy_(given.reshape(held.shape))
        if (bias is None) != (self.bias is None):
            raise InputError("a bias on one side only", where=repr(self))
        if bias is not None and self.bias is not None:
            self.bias.copy_(bias)


@final
class LowRankLinear(_LowRank):
    """y = W x + b with W of rank r, in r(m + n − r) numbers.

    ``down`` and ``up`` are ``nn.Linear``: what trains, quantises or adapts (PEFT) linear layers does so to them.

    Args:
        in_features, out_features: n and m.
        rank: r, from 1 to min(m, n).
        bias: whether there is b.
        transposed: whether the dense layer it stands for is transformers' ``Conv1D``, which stores W as (n, m).
        device, dtype: of the parameters.

    Raises:
        InputError: no such rank.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, *, transposed: bool = False,
        device: torch.device | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_rank(rank, out_features, in_features)
        self.in_features, self.out_features, self.transposed = in_features, out_features, transposed
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.up = _unset(nn.Linear, rank, out_features - rank, bias=False, device=device, dtype=dtype)
        self._hold(out_features, bias, device, dtype)

    @property
    def weight(self) -> Tensor:
        """W (m, n), multiplied out at each call."""
        return self.factors.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """(…, n) → (…, m)."""
        chosen = self.down(x)
        y = torch.cat([chosen, self.up(chosen)], dim=-1).index_select(-1, self.order)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Shape and rank, for ``print(model)``."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


@final
class LowRankConv(_LowRank):
    """A convolution of r channels, and one of size 1 that combines them into the other channels.

    Args:
        like: the ungrouped, not transposed ``nn.Conv1d``, ``Conv2d`` or ``Conv3d`` whose channels, kernel, stride, padding
            and dilation it has; its weights are not taken.
        rank: r, from 1 to min(out, in·k…).
        device, dtype: of the parameters.

    Raises:
        InputError: no such rank, or a convolution of another kind.
    """

    def __init__(
        self, like: Any, rank: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if not isinstance(like, CONVOLUTIONS) or like.groups != 1:
            raise InputError(f"a {like}", expected="an ungrouped convolution that is not transposed")
        _check_rank(rank, like.out_channels, like.weight[0].numel())
        kind: Any = type(like)
        self.dimensions = like.weight.dim() - 2
        self.down = kind(
            like.in_channels, rank, like.kernel_size, stride=like.stride, padding=like.padding, dilation=like.dilation,
            bias=False, padding_mode=like.padding_mode, device=device, dtype=dtype,
        )  # fmt: skip
        self.up = _unset(kind, rank, like.out_channels - rank, 1, bias=False, device=device, dtype=dtype)
        self._hold(like.out_channels, like.bias is not None, device, dtype)

    @property
    def weight(self) -> Tensor:
        """Kernels (out, in, k…), multiplied out at each call."""
        return self.factors.to_dense().reshape(-1, *self.down.weight.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """([batch,] in, size…) → ([batch,] out, size…)."""
        channels = -1 - self.dimensions
        chosen = self.down(x)
        y = torch.cat([chosen, self.up(chosen)], dim=channels).index_select(channels, self.order)
        return y if self.bias is None else y + self.bias.reshape(-1, *[1] * self.dimensions)


def _check_rank(rank: int, rows: int, cols: int) -> None:
    if not 1 <= rank <= min(rows, cols):
        raise InputError(f"rank {rank} of a {rows}×{cols} map", expected=f"1 to {min(rows, cols)}")


def _unset(kind: Any, *args: int, **options: Any) -> Any:
    """A layer that may have no outputs, of which torch complains when it sets the weights at random."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors", UserWarning)
        return kind(*args, **options)


def is_transposed(module: nn.Module) -> bool:
    """Whether it is transformers' ``Conv1D`` (of GPT-2), a linear layer that stores its weight as (n, m)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def dense_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every layer that can be held in low rank; a module used at two names comes once."""
    for name, module in model.named_modules():
        plain = type(module) is nn.Linear or is_transposed(module)
        if plain or (isinstance(module, CONVOLUTIONS) and module.groups == 1):
            yield name, module


def matrix_of(module: Any) -> Tensor:
    """The layer's map as a (m, n) matrix, not copied: kernels flattened, a transposed weight turned."""
    weight: Tensor = module.weight
    return weight.T if is_transposed(module) else weight.flatten(1)


def low_rank_twin(module: Any, rank: int) -> LowRankLinear | LowRankConv:
    """A layer of the same use, rank r, its weights not set; on the same device, in the same dtype, in the same mode."""
    weight = module.weight
    twin: LowRankLinear | LowRankConv
    if isinstance(module, CONVOLUTIONS):
        twin = LowRankConv(module, rank, device=weight.device, dtype=weight.dtype)
    else:
        rows, cols = matrix_of(module).shape
        twin = LowRankLinear(
            cols, rows, rank, module.bias is not None, transposed=is_transposed(module), device=weight.device, dtype=weight.dtype
        )  # fmt: skip
    return twin.train(module.training)


def replace(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put each layer at its name, in place; whatever shares the module gets the new one too."""
    for name, layer in layers.items():
        old = model.get_submodule(name)
        for parent in list(model.modules()):
            # Not named_children(), which gives a module that is held twice only once.
            for child_name, child in list(parent._modules.items()):
                if child is old:
                    setattr(parent, child_name, layer)


def multiply_out(model: nn.Module) -> None:
    """Replace every low-rank layer of ``model`` by the dense one it stands for, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LowRankLinear | LowRankConv):
            replace(model, {name: to_dense(module)})


@torch.no_grad()
def to_dense(layer: LowRankLinear | LowRankConv) -> nn.Module:
    """The ``nn.Linear`` or convolution of the same map, multiplied in float32 at least."""
    weight = layer.weight
    held = layer.factors
    precise = torch.promote_types(weight.dtype, torch.float32)
    exact = Interpolative(held.down.to(precise), held.up.to(precise), held.order).to_dense()
    options: dict[str, Any] = {"bias": layer.bias is not None, "device": weight.device, "dtype": weight.dtype}
    dense: Any
    if isinstance(layer, LowRankLinear) and layer.transposed:
        from transformers.pytorch_utils import Conv1D

        make: Any = Conv1D
        dense = make(layer.out_features, layer.in_features).to(weight.device, weight.dtype)
        exact = exact.T
    elif isinstance(layer, LowRankLinear):
        dense = nn.Linear(layer.in_features, layer.out_features, **options)
    else:
        down = layer.down
        dense = type(down)(
            down.in_channels, len(layer.order), down.kernel_size, stride=down.stride, padding=down.padding,
            dilation=down.dilation, padding_mode=down.padding_mode, **options,
        )  # fmt: skip
    dense.weight.copy_(exact.reshape(dense.weight.shape))
    if layer.bias is not None:
        dense.bias.copy_(layer.bias)
    dense.train(layer.training)
    return dense  # type: ignore[no-any-return]
