"""A copy of a bundle's configs and made-up results, for the tests of its documents."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import write_docs
from bundle_files import REPOSITORY

PROVENANCE = {
    "commit": "0123abcdef01",
    "seed": 7,
    "hardware": {"cpu": "a processor", "cores": 2, "threads": 1, "gpu": None, "os": "Linux"},
    "versions": {"torch": "2.13.0"},
}


def without_results(folder: Path, bundle: str) -> Path:
    """A repository with the configs of the bundle and a README."""
    shutil.copytree(REPOSITORY / "bundles" / bundle / "configs", folder / "bundles" / bundle / "configs")
    shutil.copy(REPOSITORY / "constraints.txt", folder)
    (folder / "README.md").write_text("\n".join(m.format(bundle) for m in (write_docs.BEGIN, write_docs.END)))
    return folder


def add_results(
    repository: Path, bundle: str, tables: Mapping[str, Sequence[Any]], targets: Mapping[str, Sequence[Any]]
) -> Path:
    """The same with tables, some of which name targets."""
    folder = repository / "bundles" / bundle / "docs" / "results"
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        content = {"provenance": PROVENANCE | {"targets": targets.get(name, [])}, "rows": rows}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return repository


def card_of(repository: Path, bundle: str) -> str:
    """The model card that is written there."""
    assert write_docs.main(["--repository", str(repository), "--bundle", bundle]) == 0
    return (repository / "bundles" / bundle / "docs" / "README.md").read_text()
