"""The one exception a user of the bundles sees."""

from __future__ import annotations

import os
import sys
from os import PathLike
from types import TracebackType
from typing import Any


class QMRIError(ValueError):
    """Bad input, said in five parts: which file, which field, what was found, what is expected, what to do.

    Args:
        file: the file or folder concerned; None where there is none.
        field: the header field, sidecar field, option or key concerned.
        found: what is there.
        expected: what should be there.
        remedy: what the user can do about it.
    """

    def __init__(
        self,
        *,
        file: str | PathLike[str] | None = None,
        field: str | None = None,
        found: object,
        expected: object,
        remedy: str,
    ) -> None:
        self.file = None if file is None else str(file)
        self.field = field
        self.found = str(found)
        self.expected = str(expected)
        self.remedy = remedy
        parts = {"file": self.file, "field": field, "found": self.found, "expected": self.expected, "remedy": remedy}
        lines = [f"  {name + ':':<10}{value}" for name, value in parts.items() if value is not None]
        super().__init__("\n".join(["cannot use this input", *lines]))

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled by their positional arguments; ours are keywords (data loader workers send them back).
        return _rebuild, (self.file, self.field, self.found, self.expected, self.remedy)


def _rebuild(file: str | None, field: str | None, found: str, expected: str, remedy: str) -> QMRIError:
    return QMRIError(file=file, field=field, found=found, expected=expected, remedy=remedy)


def cause_of(error: BaseException) -> QMRIError | None:
    """The QMRIError that an exception is, or that it was raised from; None where there is none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, QMRIError):
        cause = cause.__cause__
    return cause


def show_errors_plainly() -> None:
    """Let a command that ends with a QMRIError print its five parts instead of MONAI's nested traceback.

    MONAI wraps whatever happens in a config ("Failed to instantiate component ..."), so the cause stands far above the
    last line. An item of ``initialize``; the environment variable QMRI_TRACEBACK=1 brings the traceback back.
    """
    previous = sys.excepthook
    if getattr(previous, "shows_qmri_errors", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause = cause_of(error)
        if cause is None or os.environ.get("QMRI_TRACEBACK", "0") not in ("", "0"):
            previous(kind, error, trace)
        else:
            print(f"\nQMRIError: {cause}", file=sys.stderr)

    hook.shows_qmri_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook
