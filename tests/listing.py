"""What the tests of the listing of matrices share: tensors to list, and the laws that every listing obeys."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from eigenscope.models.checkpoint import Checkpoint, MemoryCheckpoint
from eigenscope.models.matrices import Matrix, list_matrices, read_matrix
from eigenscope.results import Coverage


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal entries."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def checkpoint_of(tensors: dict[str, Tensor], **config: Any) -> MemoryCheckpoint:
    return MemoryCheckpoint(tensors, config=config)


def matrices_of(checkpoint: Checkpoint) -> dict[str, Matrix]:
    """By name, which must be unique."""
    found, _ = list_matrices(checkpoint)
    assert len({matrix.name for matrix in found}) == len(found)
    return {matrix.name: matrix for matrix in found}


def coverage_of(checkpoint: Checkpoint) -> dict[str, Coverage]:
    return {entry.tensor: entry for entry in list_matrices(checkpoint)[1]}


def entries(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {name: read_matrix(checkpoint, matrix) for name, matrix in matrices_of(checkpoint).items()}


def check_coverage(checkpoint: Checkpoint) -> None:
    """Every tensor once, in order; the matrices of a tensor that is read hold each of its entries once."""
    matrices, coverage = list_matrices(checkpoint)
    assert [entry.tensor for entry in coverage] == list(checkpoint.tensors)
    counts = Counter(matrix.tensor for matrix in matrices)
    for entry in coverage:
        own = [matrix for matrix in matrices if matrix.tensor == entry.tensor]
        assert entry.matrices == counts[entry.tensor] == len(own)
        assert (entry.outcome == "not a matrix") == (not own)
        if entry.outcome == "read":
            read = torch.cat([read_matrix(checkpoint, matrix).flatten() for matrix in own])
            stored = checkpoint.read(entry.tensor).flatten()
            assert read.numel() == stored.numel()
            if read.dtype == stored.dtype and not own[0].gain and not read.is_complex():
                assert read.float().sort().values.equal(stored.float().sort().values)
        else:
            assert entry.reason
    for matrix in matrices:
        assert pickle.loads(pickle.dumps(matrix)) == matrix
