"""The columns of the monitor's run files: one row a measurement."""

from __future__ import annotations

from eigenscope.columns.column import Column, fact

_COHEN = "Cohen et al., ICLR 2021; for adaptive optimisers Cohen et al., arXiv 2207.14484, 2022"

COLUMNS: tuple[Column, ...] = (
    fact("name", "name", "text", "The step of training after which it was measured."),
    fact("step", "step", "count", "Its number."),
    Column("lambda_max", "λ max", "number", "Largest eigenvalue of the Hessian of the loss.", _COHEN, "log"),
    Column(
        "lambda_max_bound", "λ max ±", "number", "Some eigenvalue lies within this of it.",
        "Parlett, The Symmetric Eigenvalue Problem, Theorem 4.5.1", "log",
    ),
    Column(
        "preconditioned", "preconditioned λ max", "number",
        "The same in the metric that the optimiser steps in: of D^-½ H D^-½.", _COHEN, "log",
    ),
    Column(
        "preconditioned_bound", "preconditioned λ max ±", "number", "Some of its eigenvalues lies within this of it.",
        "Parlett, The Symmetric Eigenvalue Problem, Theorem 4.5.1", "log",
    ),
    Column(
        "trace", "trace", "number", "Sum of the eigenvalues of the Hessian, estimated.",
        "Hutchinson, Commun. Statist. Simul. 18(3), 1989",
    ),
    Column(
        "trace_stderr", "trace ±", "number", "Standard error of the trace.",
        "Hutchinson, Commun. Statist. Simul. 18(3), 1989",
    ),
    Column("gradient_norm", "‖g‖", "number", "Norm of the gradient of the same loss.", "definition", "log"),
    fact("learning_rate", "η", "number", "Learning rate of the first group."),
    Column("edge", "edge", "number", "The eigenvalue that this learning rate bears.", _COHEN, "log"),
    Column("stability", "λ / edge", "number", "1 is the edge of stability.", _COHEN),
    fact("products", "products", "count", "Hessian products that the measurement took."),
    fact("seconds", "seconds", "number", "That it took."),
)  # fmt: skip
