"""What a file of weights could run when it is loaded: names that its pickles import, programs of TorchScript.

Pickles are read operation by operation (`pickletools`), never loaded; zips by their directory and in memory.
"""

from __future__ import annotations

import ast
import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from bundle_zip import archive_faults, too_many

from untrusted.findings import Finding

MAX_PICKLE_BYTES = 64 * 1024**2
# What torch.load(weights_only=True) needs for a state_dict of tensors, no more.
TENSORS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch (\w+Storage|Size|device|dtype)"
    r"|torch\.storage (UntypedStorage|TypedStorage)|torch\.serialization _get_layout"
    r"|torch (bfloat16|u?int\d+|float\d+|bool|long|half|double)"
)
TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
SILENT = ("PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT")


def weight_findings(file: str, path: Path) -> list[Finding]:
    """What one file of weights, or any other binary of that form, could run.

    Args:
        file: its path below the bundle's root.
        path: the file.
    """
    try:
        if zipfile.is_zipfile(path):
            return list(_zip(file, path))
        with path.open("rb") as opened:
            start = opened.read(MAX_PICKLE_BYTES + 1)
        if start.startswith(b"\x93NUMPY"):
            return list(_array(file, start))
        return list(_pickles(file, start))
    except Exception as error:  # each format has its own, and what cannot be read is not harmless
        return [Finding("not looked into", f"{type(error).__name__}: {error}".splitlines()[0], file)]


def _zip(file: str, path: Path) -> Iterator[Finding]:
    with path.open("rb") as opened:
        if problem := too_many(opened):
            yield Finding("weights", problem, file)
            return
    with path.open("rb") as opened, zipfile.ZipFile(opened) as archive:
        for fault in archive_faults(archive, opened, file):
            yield Finding("weights", f"{fault.id}: {fault.problem}", file)
            return
        names = archive.namelist()
        if program := [name for name in names if "/code/" in f"/{name}"]:
            yield Finding(
                "weights", f"TorchScript: a program of {len(program)} files, in the file's folder code/", file
            )
        for entry in archive.infolist():
            if entry.filename.endswith((".pkl", ".pickle", ".npy")) and entry.file_size > MAX_PICKLE_BYTES:
                yield Finding("not looked into", "too large to be read", file, entry.filename)
            elif entry.filename.endswith(".npy"):
                yield from _array(file, archive.read(entry))
            elif entry.filename.endswith((".pkl", ".pickle")):
                yield from _pickles(file, archive.read(entry), entry.filename)
        if not any(name.endswith(("data.pkl", ".npy")) for name in names):
            yield Finding("weights", "a zip that is neither torch's nor numpy's", file)


def _array(file: str, content: bytes) -> Iterator[Finding]:
    size = 2 if content[6] == 1 else 4
    length = int.from_bytes(content[8 : 8 + size], "little")
    header = ast.literal_eval(content[8 + size : 8 + size + length].decode("latin1"))
    if "O" in str(header["descr"]):
        yield Finding("weights", "an array of objects, which numpy unpickles", file)


def _pickles(file: str, content: bytes, entry: str = "") -> Iterator[Finding]:
    """Names that pickles import, one pickle after the other; torch's old format has five, and then the tensors."""
    if len(content) > MAX_PICKLE_BYTES:
        yield Finding("not looked into", "too large to be read", file, entry)
        return
    opened = io.BytesIO(content)
    for name in sorted(set(_imported(opened))):
        if not TENSORS.fullmatch(name):
            yield Finding("weights", f"imports {name}", file, entry)
    if opened.tell() < len(content):
        yield Finding(
            "weights", "a pickle with other data behind it, not looked into: save it again as a zip", file, entry
        )


def _imported(opened: io.BytesIO) -> Iterator[str]:
    """What the next pickle imports, as "module name"; a name that it computes comes as such."""
    memo: dict[int, str | None] = {}
    before: list[str | None] = []  # texts put on the stack in direct succession
    last: str | None = None
    for operation, argument, _ in pickletools.genops(opened):
        name = operation.name
        if name in TEXTS:
            last = str(argument)
            before.append(last)
        elif name == "MEMOIZE":
            memo[len(memo)] = last
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(str(argument))] = last
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            last = memo.get(int(str(argument)))
            before.append(last)
        elif name in ("GLOBAL", "INST"):
            yield str(argument)
        elif name == "STACK_GLOBAL":
            module, attribute = before[-2:] if len(before) > 1 else (None, None)
            yield f"{module} {attribute}" if module and attribute else "a name that it computes"
        elif name in ("EXT1", "EXT2", "EXT4"):
            yield "a name of copyreg's table"
        if name not in (*TEXTS, *SILENT, "GET", "BINGET", "LONG_BINGET"):
            before, last = [], None
