"""Files are written beside their place and renamed: nobody ever sees half of one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path`` that takes its place when the block ends without an error.

    Raises:
        OSError: the file cannot be written; an older file of that name is then untouched.
    """
    target = Path(path)
    check_writable(target)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:200]}.")
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        mask = os.umask(0)
        os.umask(mask)
        # mkstemp makes files private; the finished one gets the rights that any new file would have.
        beside.chmod(0o666 & ~mask)
        beside.replace(target)
    except OSError as error:
        raise _named(error, target) from error
    finally:
        beside.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Find out before the work whether its result can be written; an existing file is not touched.

    Raises:
        OSError: it cannot: no such folder, no right to write there, a folder of that name.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise _named(error, target) from error


def _named(error: OSError, target: Path) -> OSError:
    """The same error with the name that the user knows, not that of a temporary file."""
    return OSError(error.errno or errno.EIO, error.strerror or str(error), str(target))
