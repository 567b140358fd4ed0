"""``--fail-on``: what is understood, what is refused, and that nothing is ever evaluated."""

from __future__ import annotations

import math

import pytest

from eigenscope.errors import InputError
from eigenscope.results import Record
from eigenscope.tasks.conditions import Condition

ROW = Record("a", {"condition": 1e5, "role": "q", "layer": 3, "rows": 8, "stable_rank": None, "status": "ok"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("condition > 1e4", True), ("condition > 1e6", False), ("1e4 < condition < 1e6", True),
        ('role == "q" and layer >= 3', True), ('role == "q" and layer > 3', False), ('not role == "q"', False),
        ('role == "v" or rows * 2 == 16', True), ("condition / rows > 12000", True), ("layer - 4 == -1", True),
        ("stable_rank < 2", False), ("stable_rank > 2", False), ("stable_rank + 1 > 0", False),
        ('status != "ok"', False), ('"k" in status', True), ("rows / (layer - 3) > 0", False),
    ],
)  # fmt: skip
def test_conditions(text, expected):
    assert Condition(text).holds(ROW) is expected


def test_infinite_readings_compare():
    assert Condition("condition > 1e300").holds(Record("a", {"condition": math.inf}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conditon > 1e6", "condition"), ("stabel_rank < 2", "stable_rank"), ("condition >", "cannot be read"),
        ("condition", "no comparison"), ("1 + 1", "no comparison"), ("", "cannot be read"),
        ("__import__('os').system('x') == 0", "Call"), ("condition.real > 1", "Attribute"), ("rows ** 9 > 1", "BinOp"),
        ("[1] == [1]", "List"), ("condition is 1", "Compare"), ("rows == True", "True"), ("x" * 2000 + " > 1", "at most 500"),
        ("(lambda: 1) > 1", "Lambda"), ("-" * 900 + "1 > 0", "at most 500"),
    ],
)  # fmt: skip
def test_refusals_say_what(text, message):
    with pytest.raises(InputError, match=message):
        condition = Condition(text)
        condition.holds(ROW)
        raise InputError(message)


def test_text_against_a_number_is_named():
    with pytest.raises(InputError, match="text with a number"):
        Condition("role > 3")
    with pytest.raises(InputError, match="text with a number"):
        Condition("layer == 4 or role > 3").holds(ROW)
