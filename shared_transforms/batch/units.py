"""The subjects and sessions of a BIDS data set, and the folder in which the images of one are looked for."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared_transforms.errors import QMRIError

_BIDS = "https://bids-specification.readthedocs.io"


@dataclass(frozen=True, order=True)
class Unit:
    """What is done as a whole: one session of a subject, or a subject without sessions.

    Attributes:
        subject: name of its folder, such as "sub-01".
        session: name of its folder, such as "ses-2"; "" where there are none.
    """

    subject: str
    session: str = ""

    @property
    def label(self) -> str:
        """What its file names begin with: "sub-01_ses-2"."""
        return "_".join(filter(None, (self.subject, self.session)))

    def below(self, root: Path) -> Path:
        """Its folder in a data set."""
        return root / self.subject / self.session


def find_units(root: Path, subjects: Sequence[str] = (), sessions: Sequence[str] = ()) -> list[Unit]:
    """List the subjects and sessions of a BIDS data set in the order of their names.

    Only ``sub-*`` folders of the root count, so derivatives are no input, wherever they lie. Files beside the session
    folders of a subject belong to no session, which BIDS does not allow, and are not looked at.

    Args:
        root: the data set.
        subjects: those wanted, with or without "sub-"; empty for all.
        sessions: likewise.

    Raises:
        QMRIError: no such folder, no subjects in it, or a subject or session wanted that is not there.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise QMRIError(
            file=root,
            field="dataset_dir",
            found=found,
            expected="a BIDS data set",
            remedy="check the path (dataset_dir)",
        )
    units = []
    for folder in sorted(root.glob("sub-*")):
        if folder.is_dir():
            visits = sorted(p.name for p in folder.glob("ses-*") if p.is_dir())
            units += [Unit(folder.name, visit) for visit in visits or [""]]
    if not units:
        there = ", ".join(sorted(p.name for p in root.iterdir())[:6])
        raise QMRIError(
            file=root, field="dataset_dir", found=f"no sub-* folder ({there or 'an empty folder'})",
            expected=f"a BIDS data set: sub-LABEL/[ses-LABEL/]anat/... ({_BIDS})",
            remedy="point dataset_dir to the folder that holds the sub-* folders; for one folder of images, run "
            "inference.json",
        )  # fmt: skip
    chosen = units
    for field, prefix, names in (("subjects", "sub-", subjects), ("sessions", "ses-", sessions)):
        wanted = {name if name.startswith(prefix) else prefix + name for name in names}
        known = {unit.subject if prefix == "sub-" else unit.session for unit in units}
        if missing := sorted(wanted - known):
            raise QMRIError(
                file=root, field=field, found=f"no {', '.join(missing)}",
                expected=f"some of {', '.join(sorted(filter(None, known))[:12]) or 'none'}", remedy="correct the names",
            )  # fmt: skip
        if wanted:
            chosen = [u for u in chosen if (u.subject if prefix == "sub-" else u.session) in wanted]
    return chosen


def share_of(units: Sequence[Unit], shard: str) -> list[Unit]:
    """The units of one job of several that share the work: every n-th, so that any job knows its own by itself.

    Args:
        units: all of them.
        shard: "0/4" for the first of four.

    Raises:
        QMRIError: anything else than "i/n" with i from 0 to n - 1.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or not int(match[1]) < int(match[2]):
        raise QMRIError(
            field="shard", found=repr(shard), expected="i/n with i from 0 to n - 1, such as 0/4",
            remedy="number the jobs from 0 (SLURM: --array=0-3)",
        )  # fmt: skip
    return list(units[int(match[1]) :: int(match[2])])


@contextmanager
def search_folder(unit: Unit, root: Path, derivatives: Sequence[Path]) -> Iterator[tuple[Path, Callable[[str], str]]]:
    """A folder with all images of one unit: its own, or with derivatives a temporary one of links to all of them.

    Args:
        unit: the unit.
        root: the data set.
        derivatives: data sets with more images of the same subjects; what they hold for no session counts for each.

    Yields:
        The folder, and a function that puts the names of the real files into a text that names the links.
    """
    if not derivatives:
        yield unit.below(root), str
        return
    with tempfile.TemporaryDirectory(prefix="qmri-batch-") as temporary:
        view = Path(temporary).resolve()
        places = {view / "derivatives" / str(i): dataset for i, dataset in enumerate(derivatives)} | {view: root}
        for place, dataset in places.items():
            place.mkdir(parents=True, exist_ok=True)
            folder = unit.below(dataset)
            if dataset != root and not any(dataset.glob(f"{unit.subject}/ses-*")):
                folder = dataset / unit.subject
            _link_below(folder, dataset, place)
            if dataset != root:
                (place / "dataset_description.json").unlink(missing_ok=True)
                (place / "dataset_description.json").write_text(json.dumps({"DatasetType": "derivative"}))

        def real(text: str) -> str:
            for place, dataset in places.items():  # the view itself last: the others lie in it
                text = text.replace(str(place), str(dataset))
            return text

        yield view, real


def _link_below(folder: Path, dataset: Path, place: Path) -> None:
    """Link the files below a folder, and the sidecars above it, which they may inherit from."""
    files = [Path(base) / name for base, _, names in os.walk(folder, followlinks=True) for name in names]
    above = [dataset, *(p for p in folder.parents if dataset in p.parents)]
    files += [sidecar for parent in above for sidecar in parent.glob("*.json")]
    for file in files:
        link = place / file.relative_to(dataset)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
