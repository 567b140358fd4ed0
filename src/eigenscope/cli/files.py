"""Checks of the files that a command line names, before anything is computed or overwritten."""

from __future__ import annotations

from pathlib import Path

from eigenscope.errors import InputError
from eigenscope.files import check_writable

PAGE_ENDINGS = (".html", ".htm")


def check_page(page: Path, run: Path | None) -> None:
    """Refuse a page that could not be written at the end, or that would take the place of something else.

    Raises:
        InputError: an ending that is not a page's, which also keeps models and tables from being overwritten.
        OSError: no such folder, or no right to write there.
    """
    if page.suffix.lower() not in PAGE_ENDINGS:
        raise InputError(f"page named {page.name!r}", where=str(page), expected="a name ending in .html")
    check_output(page, run)


def check_output(output: Path, run: Path | None) -> None:
    """Refuse an output that is the run file, or that cannot be written.

    Raises:
        InputError: it is the run file itself.
        OSError: no such folder, or no right to write there.
    """
    if run is not None and output.resolve() == run.resolve():
        raise InputError("it is the run file itself", where=str(output), expected="another name")
    check_writable(output)
