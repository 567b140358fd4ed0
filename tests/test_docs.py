"""What the documentation shows is run, and the lists in it are those of the code."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from eigenscope.cli.main import app
from eigenscope.columns import COLUMNS, Column
from eigenscope.columns import diff as of_diff

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


TABLES = {"readings": COLUMNS, "diff": [column for column in of_diff.COLUMNS if column not in COLUMNS]}
"""What stands between which markers of the README; of a comparison, what a scan does not have as well."""


def table_of_readings(columns: Iterable[Column]) -> str:
    """The README's table, as the code has it."""
    lines = ["| reading | column | what it says | source |", "|---|---|---|---|"]
    for column in columns:
        if column.source:
            meaning = column.meaning.replace("|", "\\|")
            lines.append(f"| {column.label} | `{column.name}` | {meaning} | {column.source} |")
    return "\n".join(lines)


@pytest.mark.parametrize("name", TABLES)
def test_the_table_of_readings_is_the_codes(name):
    text = (ROOT / "README.md").read_text("utf-8")
    shown = re.search(rf"<!-- {name}: begin[^\n]*-->\n(.*?)\n?<!-- {name}: end -->", text, re.DOTALL)
    assert shown
    assert shown[1].strip() == table_of_readings(TABLES[name])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_code_in_the_documentation_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared: dict[str, object] = {}
    for block in BLOCK.findall(page.read_text("utf-8")):
        exec(compile(block, page.name, "exec"), shared)


def test_every_verb_has_its_line_in_the_readme():
    text = (ROOT / "README.md").read_text("utf-8")
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    verbs |= {group.name for group in app.registered_groups}
    shown = set(re.findall(r"^\| `eigenscope (\w+)", text, re.MULTILINE))
    assert shown == verbs


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        assert "://" in target or (ROOT / target).exists(), target
