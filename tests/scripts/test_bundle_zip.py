"""An unsafe zip is refused before anything of it is written; a good one comes out as it went in."""

import random
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import bundle_zip
import pytest
from bundle_files import BundleError
from bundle_zip import name_problem, open_bundle

STORED, DEFLATED = 0, 8


@dataclass
class Entry:
    """One entry as bytes: every field may lie."""

    name: str
    content: bytes = b"{}"
    method: int = STORED
    flags: int = 0x800
    mode: int = stat.S_IFREG | 0o644
    size: int | None = None
    crc: int | None = None
    packed_size: int | None = None
    header_name: str | None = None
    offset: int | None = None
    stream: bytes | None = None

    @property
    def packed(self) -> bytes:
        if self.stream is not None:
            return self.stream
        if self.method != DEFLATED:
            return self.content
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        return deflate.compress(self.content) + deflate.flush()

    @property
    def fields(self) -> tuple[int, int, int]:
        return (
            zlib.crc32(self.content) if self.crc is None else self.crc,
            len(self.packed) if self.packed_size is None else self.packed_size,
            len(self.content) if self.size is None else self.size,
        )

    def local(self) -> bytes:
        name = (self.header_name or self.name).encode()
        head = struct.pack("<4s5H3L2H", b"PK\3\4", 20, self.flags, self.method, 0, 33, *self.fields, len(name), 0)
        return head + name + self.packed

    def central(self, offset: int) -> bytes:
        name = self.name.encode()
        place = offset if self.offset is None else self.offset
        kind = struct.pack("<4s6H", b"PK\1\2", 0x314, 20, self.flags, self.method, 0, 33)
        rest = struct.pack("<5H2L", len(name), 0, 0, 0, 0, self.mode << 16, place)
        return kind + struct.pack("<3L", *self.fields) + rest + name


METADATA = Entry("b/configs/metadata.json")


def write(path: Path, *entries: Entry, only_listed: int = 0) -> Path:
    """A zip of METADATA and the entries; the last ``only_listed`` are in the directory alone."""
    everything = [METADATA, *entries]
    data, directory = b"", b""
    for number, entry in enumerate(everything):
        directory += entry.central(len(data))
        if number < len(everything) - only_listed:
            data += entry.local()
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(everything), len(everything), len(directory), len(data), 0)
    path.write_bytes(data + directory + end)
    return path


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that zips are unpacked in."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def refusal(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Why the zip is refused; fails if anything had been written by then."""
    wrote: list[object] = []
    with monkeypatch.context() as context:
        context.setattr(zipfile.ZipFile, "extractall", lambda *arguments: wrote.append(arguments))
        with pytest.raises(BundleError) as caught, open_bundle(path):
            pass
    assert not wrote
    assert all(fault.cure for fault in caught.value.faults)
    return str(caught.value)


def test_a_good_zip_comes_out_as_it_went_in(tmp_path: Path, written: Path) -> None:
    noise = random.Random(1).randbytes(3 * bundle_zip.PIECE + 5)
    contents = {
        "weights.pt": noise,
        "zeros.bin": bytes(5 * bundle_zip.PIECE),
        "empty.txt": b"",
        "Über/ein-Bild.png": b"1",
    }
    entries = [
        Entry(f"b/{name}", content, method) for method in (STORED, DEFLATED) for name, content in contents.items()
    ]
    entries = [replace(entry, name=f"{entry.name}.{entry.method}") for entry in entries]
    folder = Entry("b/docs/", b"", mode=stat.S_IFDIR | 0o755)
    with open_bundle(write(tmp_path / "b.zip", folder, *entries)) as root:
        assert root.parent.parent == written
        for entry in entries:
            assert (root.parent / entry.name).read_bytes() == entry.content


def test_zips_of_other_programs_are_read(tmp_path: Path, written: Path) -> None:
    """Sizes behind the data, fields of zip64: as Python writes them to a pipe and for large files."""
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as archive, archive.open("b/configs/metadata.json", "w", force_zip64=True) as file:
        file.write(b"{}")
    with open_bundle(path) as root:
        assert (root / "configs/metadata.json").read_text() == "{}"


NAMES = {
    "absolute": ["/etc/evil", "C:/evil", "c:evil", "//server/share"],
    "leads out": ["../evil", "b/../../evil", "b/.."],
    "backslash": ["b\\..\\evil", "\\\\server\\evil", "b/a\\b"],
    "control": ["b/a\0.py", "b/a\nb", "b/a\x7f", "b/\x1b[2J", "b/\u202egnp.py", "b/a\u200bb", "b/\x85"],
    "Windows does not allow": ["b/a:stream", "b/a?", "b/a*", "b/<a>", "b/a|b", 'b/"a"'],
    "ends in a dot": ["b/a.", "b/a ", "b/a./c", "b//c", "b/./c", "./b", ""],
    "device": ["b/CON", "b/nul.txt", "b/Com1.py", "b/lpt¹", "b/aux/x", "b/con .txt", "b/CONIN$"],
    "longer": ["b/" + "a" * 256, "b/" + "é" * 128, "/".join(["b"] * 600)],
}


@pytest.mark.parametrize(("problem", "name"), [(problem, name) for problem, names in NAMES.items() for name in names])
def test_a_name_that_is_not_good_everywhere_is_refused(
    tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch, problem: str, name: str
) -> None:
    assert problem in str(name_problem(name))
    assert problem in refusal(write(tmp_path / "b.zip", Entry(name)), monkeypatch)


@pytest.mark.parametrize(
    "name", ["b/a.b.c", "b/.gitignore", "b/console.py", "b/com10", "b/Größe.md", "b/a b", "b/docs/"]
)
def test_a_good_name_is_good(name: str) -> None:
    assert name_problem(name) is None


ENTRIES = {
    "a link": ([Entry("b/x", b"/etc/passwd", mode=stat.S_IFLNK | 0o777)], "link or a device"),
    "a pipe": ([Entry("b/x", mode=stat.S_IFIFO | 0o644)], "link or a device"),
    "a device": ([Entry("b/x", mode=stat.S_IFCHR | 0o644)], "link or a device"),
    "a socket": ([Entry("b/x", mode=stat.S_IFSOCK | 0o644)], "link or a device"),
    "a folder by its mode": ([Entry("b/x", mode=stat.S_IFDIR | 0o755)], "not by both"),
    "a folder with data": ([Entry("b/x/", mode=0)], "folder that holds data"),
    "encrypted": ([Entry("b/x", flags=0x801)], "encrypted"),
    "strongly encrypted": ([Entry("b/x", flags=0x841)], "encrypted"),
    "bzip2": ([Entry("b/x", method=12)], "method 12"),
    "twice": ([Entry("b/x"), Entry("b/x")], "two entries of one name"),
    "a folder twice": ([Entry("b/x/", b""), Entry("b/x/", b"")], "by its mode"),
    "case": ([Entry("b/x.py"), Entry("b/X.py")], "takes the place of 'b/x.py'"),
    "case of a folder": ([Entry("b/x/a"), Entry("b/X/b")], "takes the place of 'b/x'"),
    "sharp s": ([Entry("b/straße"), Entry("b/STRASSE")], "takes the place"),
    "composed": ([Entry("b/\u00e9"), Entry("b/e\u0301")], "takes the place"),
    "file, then folder": ([Entry("b/x"), Entry("b/x/y")], "a file and a folder"),
    "folder, then file": ([Entry("b/x/y"), Entry("b/x")], "a file and a folder"),
    "other name": ([Entry("b/x", header_name="b/y")], "by its own header"),
    "zeros": ([Entry("b/x", bytes(40 * 1024**2), DEFLATED)], "compression bomb"),
    "declares 4 GB": ([Entry("b/x", size=2**32 - 2)], "compression bomb"),
    "no header": ([Entry("b/x", offset=7)], "no header of its own"),
    "runs into the directory": ([Entry("b/x", packed_size=100, size=100)], "overlap its directory"),
    "stored, too short": ([Entry("b/x", b"abc", size=4)], "is damaged"),
    "stored, too long": ([Entry("b/x", b"abc", size=2)], "more than the 2 bytes"),
    "wrong checksum": ([Entry("b/x", b"abc", DEFLATED, crc=1)], "is damaged"),
    "not deflated": ([Entry("b/x", b"abc", DEFLATED, stream=b"\xff" * 9)], "is damaged"),
    "deflated in part": ([Entry("b/x", b"abc", DEFLATED, stream=b"")], "is damaged"),
    "other folder": ([Entry("other/x")], "not one folder"),
}


@pytest.mark.parametrize(("entries", "problem"), ENTRIES.values(), ids=ENTRIES.keys())
def test_an_unsafe_entry_is_refused(
    tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch, entries: list[Entry], problem: str
) -> None:
    assert problem in refusal(write(tmp_path / "b.zip", *entries), monkeypatch)


def test_a_size_that_lies_is_found_out(tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own reader stops at the declared size, and takes what it has read for the whole if its checksum fits."""
    content = bytes(30 * 1024**2)
    liar = Entry("b/x", content, DEFLATED, size=10, crc=zlib.crc32(content[:10]))
    path = write(tmp_path / "b.zip", liar)
    assert zipfile.ZipFile(path).read("b/x") == content[:10]
    assert "more than the 10 bytes" in refusal(path, monkeypatch)


def test_data_behind_the_end_are_found_out(tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Entry("b/x", b"abc", DEFLATED).packed + b"hidden"
    path = write(tmp_path / "b.zip", Entry("b/x", b"abc", DEFLATED, stream=stream))
    assert zipfile.ZipFile(path).read("b/x") == b"abc"
    assert "data follow" in refusal(path, monkeypatch)


def test_a_zip_bomb_of_overlapping_entries_is_refused(
    tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D. Fifield, A better zip bomb (WOOT 2019): the data of one entry hold the next one, header and all."""
    inner = Entry("b/inner", b"zeros")
    outer = Entry("b/outer", inner.local())
    place = len(METADATA.local()) + len(outer.local()) - len(inner.local())
    path = write(tmp_path / "b.zip", outer, replace(inner, offset=place), only_listed=1)
    assert zipfile.ZipFile(path).read("b/outer") == inner.local()
    assert "overlaps the data" in refusal(path, monkeypatch)


def test_one_place_in_the_file_for_two_names_is_refused(
    tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = Entry("b/y", b"abc", offset=len(METADATA.local()), header_name="b/x")
    assert "overlaps" in refusal(write(tmp_path / "b.zip", Entry("b/x", b"abc"), twin, only_listed=1), monkeypatch)


def test_more_entries_than_a_bundle_has_are_refused(
    tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_zip, "MAX_ZIP_ENTRIES", 3)
    path = write(tmp_path / "b.zip", *[Entry(f"b/{n}") for n in range(3)])
    monkeypatch.setattr(zipfile, "ZipFile", None)  # not even its directory is read
    with pytest.raises(BundleError, match="entries"), open_bundle(path):
        pass


def test_a_damaged_zip_is_refused_in_words(tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever byte is damaged: either a refusal in words, or the content as it was."""
    path = write(tmp_path / "b.zip", Entry("b/x", b"abc" * 9, DEFLATED))
    good = path.read_bytes()
    refused = 0
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            with open_bundle(path) as root:
                assert (root / "x").read_bytes() == b"abc" * 9
        except BundleError:
            refused += 1
    assert refused > len(good) / 2
