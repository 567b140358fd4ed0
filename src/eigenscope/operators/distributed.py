"""Data-parallel products: each process holds its share of the batches, every process gets the sum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from eigenscope.errors import InputError


class Group:
    """The processes among which the data are divided; a single one where torch.distributed is not in use.

    Args:
        use: None to divide where the default process group is initialised; False never; True to insist on it.

    Raises:
        InputError: insisted on, and not initialised.
    """

    def __init__(self, use: bool | None) -> None:
        ready = dist.is_available() and dist.is_initialized()
        if use and not ready:
            raise InputError(
                "torch.distributed is not initialised", where="distributed=True",
                remedy="launch with torchrun and call torch.distributed.init_process_group",
            )  # fmt: skip
        self.size = dist.get_world_size() if ready and use is not False else 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in every one of them."""
        if self.size > 1:
            tensor = tensor.contiguous()
            dist.all_reduce(tensor)
        return tensor

    def total(self, number: float, device: torch.device) -> float:
        """The sum of a number over the processes, in double precision."""
        return float(self.sum(torch.tensor([number], dtype=torch.float64, device=device)))

    def require_same(self, X: Tensor) -> None:
        """Refuse a block that is not the same in every process: the sum would be a product with none of them.

        Raises:
            InputError: in every process, where two of them differ in shape or entries.
        """
        if self.size == 1:
            return
        places = torch.arange(1, X.numel() + 1, dtype=torch.float64, device=X.device).reshape(X.shape)
        mark = torch.stack([X.double().sum(), (X.double() * places.cos()).sum(), places.new_tensor(float(X.shape[1]))])
        extremes = torch.cat([mark, -mark])
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        if not torch.equal(extremes[:3], -extremes[3:]):
            raise InputError(
                "the processes multiply different vectors", where="distributed product",
                remedy="give every process a generator of the same seed: generator=torch.Generator().manual_seed(0)",
            )  # fmt: skip

    def require_all(self, failure: InputError | None, device: torch.device) -> None:
        """Raise in every process what failed in any of them, so that none waits for another that is gone.

        Raises:
            InputError: of this process, or that another one failed.
        """
        failed = failure is not None if self.size == 1 else self.total(float(failure is not None), device) > 0.0
        if failure is not None:
            raise failure
        if failed:
            raise InputError("it failed in another process", where="distributed operator", remedy="see its message")
