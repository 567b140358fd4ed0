"""What the design promises of the code itself: who imports whom, what loads when, which names are public."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import eigenscope
from eigenscope.columns import BY_NAME, COLUMNS, READINGS

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "eigenscope").rglob("*.py"))


def test_import_contracts_hold():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_importing_the_package_loads_no_heavy_library():
    code = (
        "import sys, eigenscope, eigenscope.cli.main; "
        "print([m for m in ('torch', 'numpy', 'scipy', 'pandas', 'plotly', 'rich', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_explicit_and_all_of_them_load():
    assert eigenscope.__all__ == sorted(eigenscope.__all__)
    assert set(eigenscope._HOMES) == set(eigenscope.__all__)
    for name in eigenscope.__all__:
        value = getattr(eigenscope, name)
        assert value.__doc__, name
        assert value.__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        eigenscope.nonsense  # noqa: B018


def test_names_for_type_checkers_are_those_that_load():
    tree = ast.parse((ROOT / "src/eigenscope/__init__.py").read_text("utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    shown = {
        alias.name: node.module.removeprefix("eigenscope.")
        for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    assert shown == eigenscope._HOMES


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_files_stay_small_and_say_what_they_are_for(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 400
    tree = ast.parse(text)
    assert not text or ast.get_docstring(tree), "the first line says what the file is for"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), "input is never validated with assert"
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 60, f"{node.name} is too long"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_columns_are_named_once_and_explained():
    assert len(BY_NAME) == len(COLUMNS)
    for column in READINGS:
        assert column.meaning.endswith("."), column.name
        assert column.kind != "text", column.name
