"""Watching the curvature while a model trains, without disturbing it: λ_max, its preconditioned value, trace, gradient.

In a plain loop::

    monitor = Monitor(model, loss, batches, optimizer, writer="runs/curvature")
    for batch in data:
        ...
        optimizer.step()
        monitor.step()

``trainer_callback`` does it for ``transformers.Trainer``, ``lightning_callback`` for Lightning.
"""

from __future__ import annotations

from eigenscope.monitor.callbacks import lightning_callback, trainer_callback
from eigenscope.monitor.edges import Edge, EdgeOfStability, edge
from eigenscope.monitor.loop import Monitor
from eigenscope.monitor.reading import Reading

__all__ = ["Edge", "EdgeOfStability", "Monitor", "Reading", "edge", "lightning_callback", "trainer_callback"]
