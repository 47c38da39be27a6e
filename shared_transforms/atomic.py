"""Files that are either the old one or the new one, never half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = ["atomic_write", "remove_leftovers", "sync_folder"]


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` that takes its place when the block ends without an exception.

    The data are on the disk (fsync of file and folder) before and after the rename, so neither a killed process nor a
    power cut leaves a truncated ``path``. The file gets the permissions of an ordinary new file. Missing folders are
    made.

    Args:
        path: the file to write or replace.

    Yields:
        A binary file, open for writing and reading back.

    Raises:
        OSError: when the folder cannot be written; ``path`` is then as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(target.parent)


def remove_leftovers(folder: str | os.PathLike[str], name: str) -> None:
    """Delete the temporary files that killed processes left in a folder.

    Args:
        folder: where to look; it need not exist.
        name: glob pattern of the final name, such as ``"*.pt"``.
    """
    for leftover in Path(folder).glob(f".{name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Put the entries of a folder on the disk: a rename in it then outlives a power cut."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder; its rename is journaled
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
