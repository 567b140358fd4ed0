"""The errors a user can meet: one message form, few types."""

from __future__ import annotations


class EigenscopeError(Exception):
    """Base of every error that is the input's fault. The command line prints it in one line and exits 2.

    Args:
        what: what is wrong, with the offending value.
        where: the file, tensor or argument.
        expected: what would have been accepted.
        remedy: what to do next.
    """

    def __init__(self, what: str, *, where: str = "", expected: str = "", remedy: str = "") -> None:
        self.what, self.where, self.expected, self.remedy = what, where, expected, remedy
        super().__init__(what, where, expected, remedy)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        if self.expected:
            line += f"; expected {self.expected}"
        if self.remedy:
            line += f". {self.remedy[0].upper()}{self.remedy[1:]}"
        return " ".join(line.split())

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.expected, self.remedy)


def _rebuild(kind: type[EigenscopeError], what: str, where: str, expected: str, remedy: str) -> EigenscopeError:
    return kind(what, where=where, expected=expected, remedy=remedy)


class InputError(EigenscopeError, ValueError):
    """An argument has the wrong shape, dtype, device or value."""


class SourceError(EigenscopeError):
    """A checkpoint, or a tensor in it, cannot be read or will not be trusted."""


class RunFileError(EigenscopeError):
    """A run file cannot be opened, written, or belongs to another source."""


class ConvergenceWarning(UserWarning):
    """An iteration ended before every pair had converged; the result flags which."""
