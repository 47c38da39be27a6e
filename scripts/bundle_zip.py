"""Opening a bundle, in a folder or a zip from anywhere: all of a zip is found safe before anything is written.

A name must be good on Linux, macOS and Windows, entries may not share a place in the file or in the folder, and what
is in them is unpacked once in memory, piece by piece, against the declared size and checksum.
"""

from __future__ import annotations

import os
import stat
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bundle_files import BundleError, Fault

MAX_ZIP_BYTES = 1024**3
MAX_ZIP_ENTRIES = 10_000
MAX_RATIO = 100  # of the sizes unpacked and packed; deflate reaches 1032, a bundle of text and weights about 10
RATIO_FROM_BYTES = 32 * 1024**2  # less than this is no bomb
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 1024
PIECE = 1024**2
ENTRY_SIGNATURE = b"PK\x01\x02"
LOCAL_HEADER = struct.Struct("<4s5H3L2H")
ENCRYPTED = 0x2041  # flags: encrypted, strongly encrypted, header masked
DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"}
DEVICES |= {f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"}
# What Python's reader raises on a damaged directory.
UNREADABLE = (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, OSError, struct.error)
UNUSABLE = "do not use this zip; ask for one that pack_bundle.py made"


@contextmanager
def open_bundle(path: Path) -> Iterator[Path]:
    """Give the root folder of the bundle at ``path``, a folder or a zip, which is unpacked into a temporary folder.

    Raises:
        BundleError: if there is nothing, or the zip is unsafe, damaged or other than one bundle: nothing is written.
    """
    if path.is_dir():
        yield path.resolve()
    elif zipfile.is_zipfile(path):
        with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
            yield Path(folder) / _unpack(path, Path(folder))
    else:
        raise BundleError(Fault(str(path), "-", "is neither a folder nor a zip", "give a bundle's folder or its zip"))


def _unpack(path: Path, folder: Path) -> str:
    """Unpack a zip into ``folder``; returns the name of the bundle's own folder in it."""
    try:
        with path.open("rb") as file:
            if problem := too_many(file):
                raise BundleError(Fault(path.name, "-", problem, UNUSABLE))
            with zipfile.ZipFile(file) as archive:
                if faults := archive_faults(archive, file, path.name):
                    raise BundleError(*faults)
                top = _top(archive, path.name)
                archive.extractall(folder)
                return top
    except UNREADABLE as error:
        raise BundleError(Fault(path.name, "-", f"is not a readable zip: {error}", UNUSABLE)) from error


def archive_faults(archive: zipfile.ZipFile, file: BinaryIO, name: str) -> list[Fault]:
    """All that is unsafe in an open archive; contents are looked into only where names and sizes are good.

    Args:
        archive: the zip.
        file: the file that it was opened from, seekable.
        name: what to call it in the faults.
    """
    entries = archive.infolist()
    found = [(repr(entry.orig_filename), problem) for entry in entries for problem in _entry_problems(entry)]
    found += list(_clashes([entry.filename for entry in entries]))
    declared, packed = sum(entry.file_size for entry in entries), sum(entry.compress_size for entry in entries)
    if declared > MAX_ZIP_BYTES or (declared > RATIO_FROM_BYTES and declared > MAX_RATIO * max(packed, 1)):
        found.append(("-", f"unpacks from {packed} to {declared} bytes, more than a bundle holds: a compression bomb"))
    if not found:
        found = list(_places(archive, file)) or list(_contents(archive, file))
    return [Fault(name, id, problem, UNUSABLE) for id, problem in found]


def too_many(file: BinaryIO) -> str | None:
    """Whether the zip is larger, or lists more entries, than a bundle has: seen before Python reads the list."""
    file.seek(0)
    size = entries = 0
    tail = b""
    while piece := file.read(PIECE):
        size += len(piece)
        entries += (tail + piece).count(ENTRY_SIGNATURE)
        tail = piece[-len(ENTRY_SIGNATURE) + 1 :]
        if size > MAX_ZIP_BYTES or entries > MAX_ZIP_ENTRIES:
            return f"has more than {MAX_ZIP_BYTES} bytes or {MAX_ZIP_ENTRIES} entries"
    return None


def _entry_problems(entry: zipfile.ZipInfo) -> Iterator[str]:
    name = entry.orig_filename  # Python cuts the other one at a NUL
    if problem := name_problem(name):
        yield problem
    elif name != entry.filename:
        yield f"is also called {entry.filename!r}"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        yield "is a link or a device"
    elif kind and (kind == stat.S_IFDIR) != name.endswith("/"):
        yield "is a folder by its name or by its mode, but not by both"
    elif name.endswith("/") and (entry.file_size or entry.compress_size):
        yield "is a folder that holds data"
    if entry.comment:
        yield "has a comment, in which other programs may see other entries"
    if entry.flag_bits & ENCRYPTED:
        yield "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield f"is compressed by method {entry.compress_type}, neither stored nor deflated"


def name_problem(name: str) -> str | None:
    """Why a path of an archive, its parts divided by ``/``, is not good on every system; None if it is."""
    parts = name.removesuffix("/").split("/")
    stems = {part.split(".")[0].rstrip().casefold() for part in parts}
    if name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        return "is an absolute path"
    if ".." in parts:
        return "leads out of the folder"
    if "\\" in name:
        return "has a backslash, which leads elsewhere on Windows"
    if any(unicodedata.category(character)[0] == "C" for character in name):
        return "has a control character or one that is not shown"
    if set(name) & set('<>:"|?*'):
        return "has a character that Windows does not allow"
    if any(part in ("", ".") or part[-1] in ". " for part in parts):
        return "has an empty part, or one that ends in a dot or a blank"
    if stems & DEVICES:
        return "is the name of a device on Windows"
    if len(name.encode()) > MAX_PATH_BYTES or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        return "is longer than a file's name may be"
    return None


def _clashes(names: list[str]) -> Iterator[tuple[str, str]]:
    """Entries that would be written to one place, on systems that tell neither case nor forms of Unicode apart."""
    spelt: dict[str, str] = {}
    files: set[str] = set()
    folders: set[str] = set()
    for name in names:
        parts = name.removesuffix("/").split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            if spelt.setdefault(_alike(path), path) != path:
                yield repr(name), f"takes the place of {spelt[_alike(path)]!r} where case or accents do not count"
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        path = "/".join(parts)
        if path in files or (name.endswith("/") and path + "/" in files):
            yield repr(name), "has two entries of one name"
        files.add(name if name.endswith("/") else path)
    for name in names:
        if not name.endswith("/") and (name in folders or name + "/" in files):
            yield repr(name), "is a file and a folder"


def _alike(path: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def _places(archive: zipfile.ZipFile, file: BinaryIO) -> Iterator[tuple[str, str]]:
    """Entries whose data overlap others' or the directory, or whose own header says other than the directory."""
    end = 0
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        file.seek(entry.header_offset)
        header = file.read(LOCAL_HEADER.size)
        if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            yield repr(entry.filename), "has no header of its own"
            return
        _, _, flags, method, _, _, _, _, _, name_bytes, extra_bytes = LOCAL_HEADER.unpack(header)
        name = file.read(name_bytes).decode("utf-8" if flags & 0x800 else "cp437")
        if name != entry.orig_filename or method != entry.compress_type or flags & ENCRYPTED:
            yield repr(entry.filename), f"is {name!r} by its own header, or packed otherwise than the directory says"
        if entry.header_offset < end:
            yield repr(entry.filename), "overlaps the data of another entry: a compression bomb"
        end = entry.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes + entry.compress_size
    if end > archive.start_dir:
        yield "-", "has entries that overlap its directory"


def _contents(archive: zipfile.ZipFile, file: BinaryIO) -> Iterator[tuple[str, str]]:
    """Entries whose data, unpacked, have another size or checksum than declared; little more than that is unpacked."""
    for entry in archive.infolist():
        size = crc = 0
        try:
            for piece in _pieces(entry, file):
                size, crc = size + len(piece), zlib.crc32(piece, crc)
                if size > entry.file_size:
                    break
        except zlib.error as error:
            yield repr(entry.filename), f"is damaged: {error}"
            continue
        if size > entry.file_size:
            yield repr(entry.filename), f"unpacks to more than the {entry.file_size} bytes that it declares"
        elif size < entry.file_size or crc != entry.CRC:
            yield repr(entry.filename), f"is not the {entry.file_size} bytes that it declares: it is damaged"


def _pieces(entry: zipfile.ZipInfo, file: BinaryIO) -> Iterator[bytes]:
    """Content of an entry, at most PIECE bytes at a time, whatever size it declares.

    Raises:
        zlib.error: if it cannot be unpacked, or if more follows its end.
    """
    file.seek(entry.header_offset)
    name_bytes, extra_bytes = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))[-2:]
    file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
    left = entry.compress_size
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    waiting = b""
    while True:
        if not waiting and left:
            waiting = file.read(min(PIECE, left))
            left = left - len(waiting) if waiting else 0
        if entry.compress_type == zipfile.ZIP_STORED:
            piece, waiting = waiting, b""
        else:
            piece = inflate.decompress(waiting, PIECE)
            waiting = inflate.unconsumed_tail
            if inflate.eof and (left or inflate.unused_data):
                raise zlib.error("data follow the end of the stream")
        if not piece and not waiting and not left:
            return
        yield piece


def _top(archive: zipfile.ZipFile, file: str) -> str:
    names = archive.namelist()
    tops = sorted({name.split("/")[0] for name in names})
    if len(tops) != 1 or f"{tops[0]}/configs/metadata.json" not in names:
        cure = "pack the bundle again with pack_bundle.py"
        raise BundleError(Fault(file, "-", f"holds {tops}, not one folder of a bundle", cure))
    return tops[0]
