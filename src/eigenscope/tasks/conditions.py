"""Expressions over the columns of a table, such as ``condition > 1e6 and role == "o"``, for ``--fail-on``.

They are parsed, never evaluated by Python: only comparisons, arithmetic, ``and``, ``or``, ``not``, numbers, text and names of
columns are understood.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Mapping
from typing import Any

from eigenscope.columns import named
from eigenscope.errors import InputError
from eigenscope.results import Record, Value

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_LONGEST = 500


class Condition:
    """A test of one row.

    Args:
        text: the expression. A column that is empty in a row makes every comparison with it false.
        verb: whose columns it is about.

    Raises:
        InputError: not such an expression, a column that does not exist (near names are offered), or text compared with
            a number.
    """

    def __init__(self, text: str, verb: str = "scan") -> None:
        self.text, self._columns = text, named(verb)
        if len(text) > _LONGEST:
            raise InputError(f"a condition of {len(text)} characters", expected=f"at most {_LONGEST}")
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._refusal(f"cannot be read: {error}") from error
        self._test = tree.body
        self._check(tree.body)
        if not isinstance(tree.body, ast.Compare | ast.BoolOp | ast.UnaryOp):
            raise self._refusal("is no comparison")
        # Text against a number is found out before the work, where no "and" or "or" hides it.
        self.holds(Record("", {name: "" if column.kind == "text" else 1 for name, column in self._columns.items()}))

    def _refusal(self, what: str) -> InputError:
        return InputError(f"{self.text!r} {what}", where="condition", expected='for example "condition > 1e6"')

    def _check(self, node: ast.AST) -> None:
        if isinstance(node, ast.Name):
            if node.id not in self._columns:
                near = difflib.get_close_matches(node.id, self._columns, n=3, cutoff=0.4)
                raise InputError(
                    f"no column {node.id!r}", where=f"condition {self.text!r}",
                    expected=f"one of {', '.join(near)}" if near else "a column of the table",
                )  # fmt: skip
            return
        if isinstance(node, ast.Constant):
            if isinstance(node.value, bool) or not isinstance(node.value, int | float | str):
                raise self._refusal(f"holds {node.value!r}")
            return
        allowed = (
            (isinstance(node, ast.Compare) and all(type(op) in _COMPARISONS for op in node.ops))
            or isinstance(node, ast.BoolOp)
            or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub))
            or (isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC)
        )
        if not allowed:
            raise self._refusal(f"holds {type(node).__name__}, which is not understood")
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._check(child)

    def holds(self, record: Record) -> bool:
        """Whether the row meets the condition.

        Raises:
            InputError: text compared with a number.
        """
        try:
            return bool(self._value(self._test, record.readings))
        except TypeError as error:
            raise self._refusal(f"compares text with a number: {error}") from error

    def _value(self, node: ast.expr, row: Mapping[str, Value]) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return row.get(node.id)
        if isinstance(node, ast.BoolOp):
            results = (self._value(value, row) for value in node.values)
            return all(results) if isinstance(node.op, ast.And) else any(results)
        if isinstance(node, ast.UnaryOp):
            value = self._value(node.operand, row)
            if isinstance(node.op, ast.Not):
                return not value
            return None if value is None else -value
        if isinstance(node, ast.BinOp):
            left, right = self._value(node.left, row), self._value(node.right, row)
            if left is None or right is None or (isinstance(node.op, ast.Div) and right == 0):
                return None
            return _ARITHMETIC[type(node.op)](left, right)
        if not isinstance(node, ast.Compare):
            raise self._refusal(f"holds {type(node).__name__}, which is not understood")
        operands = [self._value(item, row) for item in (node.left, *node.comparators)]
        if any(item is None for item in operands):
            return False
        return all(_COMPARISONS[type(op)](a, b) for op, a, b in zip(node.ops, operands, operands[1:], strict=False))
