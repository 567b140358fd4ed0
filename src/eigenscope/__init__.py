"""Eigenscope: the spectral instrument for neural networks.

Names are loaded when first used, so that ``eigenscope --help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from eigenscope.registration import register

if TYPE_CHECKING:
    from eigenscope.methods.choose import density, diagonal, eigh, spectrum, svd, trace
    from eigenscope.models.sources import open_checkpoint
    from eigenscope.operators.arrays import Dense, LowRank, Sparse
    from eigenscope.operators.base import LinearOperator
    from eigenscope.operators.curvature import hessian
    from eigenscope.operators.gauss_newton import fisher, gauss_newton
    from eigenscope.operators.jacobian import jacobian, tangent_kernel
    from eigenscope.operators.preconditioned import preconditioned
    from eigenscope.results import Density, DiagonalEstimate, Estimate, Record, Run, Spectrum
    from eigenscope.tasks.adapter import Adapter
    from eigenscope.tasks.adapter_apply import apply_adapter
    from eigenscope.tasks.adapter_extract import extract_adapter
    from eigenscope.tasks.adapter_init import init_adapter
    from eigenscope.tasks.adapter_merge import merge_adapters
    from eigenscope.tasks.adapter_show import show_adapter
    from eigenscope.tasks.compress_result import Compressed
    from eigenscope.tasks.compressed import compress
    from eigenscope.tasks.curvature import curvature
    from eigenscope.tasks.curvature_result import Curvature
    from eigenscope.tasks.decompose import Decomposition, decompose
    from eigenscope.tasks.diff import Diff, diff
    from eigenscope.tasks.scan import Scan, scan
    from eigenscope.tasks.series import Series, diff_series, scan_series

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Compressed",
    "Curvature",
    "Decomposition",
    "Dense",
    "Density",
    "DiagonalEstimate",
    "Diff",
    "Estimate",
    "LinearOperator",
    "LowRank",
    "Record",
    "Run",
    "Scan",
    "Series",
    "Sparse",
    "Spectrum",
    "apply_adapter",
    "compress",
    "curvature",
    "decompose",
    "density",
    "diagonal",
    "diff",
    "diff_series",
    "eigh",
    "extract_adapter",
    "fisher",
    "gauss_newton",
    "hessian",
    "init_adapter",
    "jacobian",
    "merge_adapters",
    "open_checkpoint",
    "preconditioned",
    "scan",
    "scan_series",
    "show_adapter",
    "spectrum",
    "svd",
    "tangent_kernel",
    "trace",
]

_HOMES = {
    "Adapter": "tasks.adapter",
    "Compressed": "tasks.compress_result",
    "Curvature": "tasks.curvature_result",
    "Decomposition": "tasks.decompose",
    "Dense": "operators.arrays",
    "Density": "results",
    "DiagonalEstimate": "results",
    "Diff": "tasks.diff",
    "Estimate": "results",
    "LinearOperator": "operators.base",
    "LowRank": "operators.arrays",
    "Record": "results",
    "Run": "results",
    "Scan": "tasks.scan",
    "Series": "tasks.series",
    "Sparse": "operators.arrays",
    "Spectrum": "results",
    "apply_adapter": "tasks.adapter_apply",
    "compress": "tasks.compressed",
    "curvature": "tasks.curvature",
    "decompose": "tasks.decompose",
    "density": "methods.choose",
    "diagonal": "methods.choose",
    "diff": "tasks.diff",
    "diff_series": "tasks.series",
    "eigh": "methods.choose",
    "extract_adapter": "tasks.adapter_extract",
    "fisher": "operators.gauss_newton",
    "gauss_newton": "operators.gauss_newton",
    "hessian": "operators.curvature",
    "init_adapter": "tasks.adapter_init",
    "jacobian": "operators.jacobian",
    "merge_adapters": "tasks.adapter_merge",
    "open_checkpoint": "models.sources",
    "preconditioned": "operators.preconditioned",
    "scan": "tasks.scan",
    "scan_series": "tasks.series",
    "show_adapter": "tasks.adapter_show",
    "spectrum": "methods.choose",
    "svd": "methods.choose",
    "tangent_kernel": "operators.jacobian",
    "trace": "methods.choose",
}


_MODULES = ("monitor", "optim", "sklearn")
"""Parts with names of their own, such as ``eigenscope.optim.NewtonCG``."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, "__version__"])


register()
