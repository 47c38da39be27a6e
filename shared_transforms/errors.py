"""The one exception a user of the bundles sees."""

from __future__ import annotations

from os import PathLike
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
