"""Find View Line images in a folder: one slice, with its even and its odd lines as two volumes or as two files."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from shared_transforms.errors import QMRIError
from shared_transforms.io.find import images_below, safe_name, unique_stems
from shared_transforms.io.find_echoes import sidecar_or_none
from shared_transforms.io.nifti import is_nifti, nifti_name, read_header
from shared_transforms.io.plane import slice_axes
from shared_transforms.io.sidecar import bids_suffix, is_derived_map, not_magnitude

logger = logging.getLogger(__name__)

LINES = ("even", "odd")
_LINES_NAME = re.compile(r"(?i)[-_ ]?(?<![a-z])lines[-_ ]?(even|odd)(?![a-z0-9])")
_PART_NAME = re.compile(r"(?i)_part-mag(?=_|$)")
_OWN_NAME = re.compile(r"(?i)(?<![a-z])view[-_ ]?lines?(?![a-z])")
_MASK_NAME = re.compile(r"(?i)(?<![a-z])mask(?![a-z])")


def find_view_lines(dataset_dir: str | Path) -> list[dict[str, Any]]:
    """List the View Line images of a folder and the folders below it.

    An image is one 4-D file of one slice with two volumes, the even and the odd lines; or two files of one slice,
    ``NAME_lines-even.nii.gz`` and ``NAME_lines-odd.nii.gz`` (``_part-mag`` may stand in the names as well). Derivative
    datasets, phase, real and imaginary images, masks and computed maps are left out.

    Args:
        dataset_dir: the folder; or one file, which is then taken whatever its name is. Of a pair, either file.

    Returns:
        One dictionary for each image, ordered by stem: ``image`` (paths: one, or even and odd), ``stem`` (unique name
        for the outputs), ``notes`` (remarks). Each is an input of ``LoadViewLined``.

    Raises:
        QMRIError: no such folder, no such image (the message says what there is), a file that cannot be read, even
            lines without odd ones, or several files for the same lines.
    """
    root = Path(dataset_dir)
    if not root.exists():
        raise QMRIError(
            file=root, field="dataset_dir", found="no such folder", expected="a folder with View Line images (NIfTI)",
            remedy="check the path (dataset_dir)",
        )  # fmt: skip
    folder = root if root.is_dir() else root.parent
    images = _with_partner(root) if root.is_file() else images_below(root)
    found, others, faults, skipped = _sort_out(images, named=root.is_file())
    if not found:
        raise faults[0] if faults else _nothing_found(root, images, others)
    for fault in faults:
        logger.warning("%s is left out: %s, %s.", fault.file, fault.field, fault.found)
    for reason, count in others.items():
        logger.info("%d images in %s are no View Line images: %s.", count, root, reason)
    firsts = [paths[0] for paths in found]
    stems = unique_stems([view_line_stem(p) for p in firsts], firsts, folder)
    series = []
    for paths, stem in zip(found, stems, strict=True):
        names = ", ".join(p.name for p in skipped if p.parent == paths[0].parent)
        notes = [f"phase, real or imaginary images skipped: {names}"] if names else []
        series.append({"image": [str(p) for p in paths], "stem": stem, "notes": notes})
    return sorted(series, key=lambda s: str(s["stem"]))


def view_line_stem(path: Path) -> str:
    """Name of an image for its outputs: the file name without what says which lines and which part it holds."""
    name = _PART_NAME.sub("", _LINES_NAME.sub("", nifti_name(path)))
    suffix = bids_suffix(name)
    name = name.removesuffix(f"_{suffix}") if suffix and _OWN_NAME.fullmatch(suffix) else name
    return safe_name(name) or safe_name(path.resolve().parent.name) or "image"


def lines_of(path: Path) -> str | None:
    """Which lines a file holds by its name, "even" or "odd"; None where the name says neither."""
    match = _LINES_NAME.search(nifti_name(path))
    return match[1].lower() if match else None


def _with_partner(path: Path) -> list[Path]:
    """A named file, and the file with the other lines beside it."""
    if lines_of(path) is None:
        return [path]
    beside = [p for p in sorted(path.parent.iterdir()) if is_nifti(p) and lines_of(p) not in (None, lines_of(path))]
    magnitude = [p for p in beside if not not_magnitude(sidecar_or_none(p), nifti_name(p))]
    return [path, *(p for p in magnitude if _pair(p) == _pair(path))]


def _pair(path: Path) -> tuple[str, str]:
    """What the two files of a pair share."""
    return str(path.parent), view_line_stem(path)


def _sort_out(images: list[Path], named: bool) -> tuple[list[list[Path]], Counter[str], list[QMRIError], list[Path]]:
    """Files of each image; what the others are; files that cannot be read; skipped parts of complex images."""
    found: list[list[Path]] = []
    others: Counter[str] = Counter()
    faults, skipped = [], []
    pairs: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in images:
        if not named and not_magnitude(sidecar_or_none(path), nifti_name(path)):
            skipped.append(path)
            others["phase, real or imaginary"] += 1
            continue
        try:
            reason = None if named else _other_image(path)
        except QMRIError as error:
            faults.append(error)
            continue
        if reason:
            others[reason] += 1
        elif lines_of(path) is not None:
            pairs[_pair(path)].append(path)
        else:
            found.append([path])
    return [*found, *(_checked_pair(p) for p in pairs.values())], others, faults, skipped


def _other_image(path: Path) -> str | None:
    """Why a file is no View Line image; None where it may be one. The reader refuses one that only its name tells."""
    name = nifti_name(path)
    if _MASK_NAME.search(name):
        return "a mask"
    if is_derived_map(sidecar_or_none(path)):
        return "a computed map"
    if lines_of(path) is not None or _OWN_NAME.search(name):
        return None
    info = read_header(path)
    if not slice_axes(info):
        return "several slices"
    return None if info.n_volumes == len(LINES) else f"one slice with {info.n_volumes} volume(s)"


def _checked_pair(paths: list[Path]) -> list[Path]:
    """Even and odd, in this order."""
    held = [lines_of(p) for p in paths]
    if sorted(map(str, held)) == sorted(LINES):
        return sorted(paths, key=lambda p: LINES.index(str(lines_of(p))))
    names = ", ".join(p.name for p in paths[:6])
    alone = len(paths) == 1
    other = LINES[held[0] == LINES[0]]
    raise QMRIError(
        file=paths[0], field="image", found=f"{held[0]} lines without {other} lines" if alone else f"{names}",
        expected=f"one file with the even and one with the odd lines: {view_line_stem(paths[0])}_lines-even.nii.gz and "
        f"{view_line_stem(paths[0])}_lines-odd.nii.gz",
        remedy=f"add the {other} lines of this image" if alone else "keep one file for each, and move the others out",
    )  # fmt: skip


def _nothing_found(root: Path, images: list[Path], others: Counter[str]) -> QMRIError:
    listed = "; ".join(f"{n} x {reason}" for reason, n in others.most_common())
    return QMRIError(
        file=root, field="dataset_dir", found=f"{len(images)} NIfTI file(s): {listed}" if images else "no NIfTI file",
        expected="a View Line image: one 4-D NIfTI file of one slice with two volumes (even, odd lines), or the files "
        "NAME_lines-even.nii.gz and NAME_lines-odd.nii.gz",
        remedy="join the even and the odd lines to one 4-D file (fslmerge -t OUTPUT EVEN ODD), or name them so; if a "
        "file is one all the same, give it: dataset_dir=FILE",
    )  # fmt: skip
