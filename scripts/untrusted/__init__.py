"""Reading a bundle that is not trusted: what in it could run, for a person to judge. Nothing of it is run or imported.

Files are read as bytes, JSON, YAML (the safe loader), Python's syntax tree, pickle operations and the directories of
zips. `examine` lists what it finds; what it does not list is no proof that a bundle is harmless.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from untrusted.code import code_findings
from untrusted.configs import config_findings
from untrusted.findings import Finding, report
from untrusted.weights import weight_findings

__all__ = ["Finding", "examine", "report"]

MAX_TEXT_BYTES = 16 * 1024**2  # more is no config and no source: it is named, not parsed
CONFIGS = {".json", ".yaml", ".yml"}
LOGGING = {".conf", ".cfg", ".ini"}
WEIGHTS = {".pt", ".pth", ".ts", ".ckpt", ".bin", ".pkl", ".pickle", ".joblib", ".npy", ".npz"}
# Data that what reads them does not run.
HARMLESS = {
    *("", ".md", ".txt", ".rst", ".csv", ".tsv", ".png", ".jpg", ".jpeg", ".gif", ".bib", ".nii", ".onnx"),
    *(".safetensors", ".gitignore"),
}


def examine(root: Path) -> list[Finding]:
    """All that could run in the bundle at folder ``root``, or that could not be looked into.

    Args:
        root: the bundle's folder, unpacked.
    """
    found: list[Finding] = []
    code: list[tuple[str, int]] = []  # top-level module or folder, and lines, of each file
    own = sorted({path.name if path.is_dir() else path.stem for path in root.iterdir() if _is_module(path)})
    for path in _files(root):
        file = path.relative_to(root).as_posix()
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            found.append(Finding("links and devices", "link" if stat.S_ISLNK(mode) else "device", file))
            continue
        suffix = ".nii" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()
        with path.open("rb") as opened:
            start = opened.read(8)
        if suffix in CONFIGS | LOGGING | {".py"}:
            if path.stat().st_size > MAX_TEXT_BYTES:
                found.append(Finding("not looked into", "too large to be read", file))
            elif suffix == ".py":
                content = path.read_bytes()
                code.append((file.split("/")[0], content.count(b"\n")))
                found += code_findings(file, content, own)
            else:
                found += config_findings(file, path.read_bytes(), own)
        elif suffix in WEIGHTS or start.startswith((b"PK", b"\x80", b"\x93NUMPY")):
            found += weight_findings(file, path)
        elif suffix not in HARMLESS or start.startswith((b"\x7fELF", b"MZ", b"#!", b"\xcf\xfa\xed\xfe")):
            found.append(Finding("files of other kinds", suffix or "a program", file))
    for top in sorted({top for top, _ in code}):
        sizes = [lines for name, lines in code if name == top]
        found.append(Finding("own code", f"{len(sizes)} files, {sum(sizes)} lines", top))
    found += [Finding("modules in front of others", name, name) for name in own if _is_taken(name)]
    return found


def _files(root: Path) -> Iterator[Path]:
    """Everything below ``root`` that is not a folder, links to folders too; no link is followed."""
    for folder, folders, files in os.walk(root):
        linked = [name for name in folders if Path(folder, name).is_symlink()]
        yield from (Path(folder, name) for name in sorted([*files, *linked]))
        folders[:] = sorted(name for name in folders if name not in linked)


def _is_module(path: Path) -> bool:
    """Whether Python, with the bundle's root on its path, imports this by its name."""
    if path.is_symlink():
        return True
    return path.suffix == ".py" or (path.is_dir() and path.name.isidentifier() and any(path.rglob("*.py")))


def _is_taken(name: str) -> bool:
    return name in sys.stdlib_module_names or name in packages_distributions()
