"""The MONAI model zoo: its conventions of a bundle as rules, and its list of packed bundles.

Source: Project-MONAI/model-zoo, CONTRIBUTING.md, ci/verify_bundle.py, ci/update_model_info.py, models/model_info.json.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bundle_files import Bundle, BundleError, Fault, lookup

from shared_transforms.atomic import atomic_write

MODEL_INFO, SUMS = "model_info.json", "SHA256SUMS"
ZIP = re.compile(r"(?P<name>[A-Za-z]\w*)_v(?P<version>\d+\.\d+\.\d+)\.zip")
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def zoo_faults(bundle: Bundle) -> Iterator[Fault]:
    """What the model zoo and its browser ask of a bundle beyond MONAI's own schema and properties."""
    if not NAME.fullmatch(bundle.name) or re.search(r"_v\d", bundle.name):
        cure = 'name it by task and data in small letters, digits and "_"; behind "_v" MONAI reads a version'
        yield Fault(".", bundle.name, "is no name for a bundle", cure)
    if "metadata.json" in bundle.configs and not _is_text(bundle.metadata.get("name")):
        yield Fault("configs/metadata.json", "name", "is not there", 'add "name": what the model browser shows')
    version, changelog = bundle.metadata.get("version"), bundle.metadata.get("changelog")
    if isinstance(changelog, dict):
        numbers = {key: tuple(map(int, key.split("."))) for key in changelog if re.fullmatch(r"\d+\.\d+\.\d+", key)}
        if version in numbers and max(numbers.values()) != numbers[version]:
            newest = max(numbers, key=lambda key: numbers[key])
            cure = "give the bundle the newest version of its changelog"
            yield Fault("configs/metadata.json", "version", f"is {version}, but the changelog knows {newest}", cure)
    for file in ("LICENSE", "docs/README.md", "docs/data_license.txt"):
        path = bundle.root / file
        if path.is_file() and not path.read_text("utf-8", errors="replace").strip():
            yield Fault(file, "-", "is empty", "the model zoo shows it: write it")
    for path in sorted(bundle.root.glob("large_files.*")):
        cure = "remove it: every file is in the bundle, and a download would be checked by nothing"
        yield Fault(path.name, "-", "names files to download", cure)
    for name, config in bundle.runnable.items():
        yield from _validation(name, config)


def _validation(name: str, config: dict[str, Any]) -> Iterator[Fault]:
    """ValidationHandler takes the ids that MONAI and the zoo look for."""
    try:
        handlers = lookup(config, "train#handlers")
    except KeyError:
        return
    for number, handler in enumerate(handlers if isinstance(handlers, list) else []):
        if not isinstance(handler, dict) or handler.get("_target_") != "ValidationHandler":
            continue
        for key, wanted in (("validator", "@validate#evaluator"), ("interval", "@val_interval")):
            found = handler.get(key)
            if not isinstance(found, str) or found.replace("::", "#") != wanted:
                cure = f'write "{wanted}" and define {wanted[1:]}'
                yield Fault(f"configs/{name}", f"train#handlers#{number}#{key}", f"is {found}", cure)


def write_lists(
    folder: Path, packed: list[Path], source: str | None, before: Mapping[str, Mapping[str, str]]
) -> list[Path]:
    """Write ``model_info.json`` and ``SHA256SUMS`` of all zips in a folder, older versions too; returns both.

    An entry of model_info.json has what the zoo's has, ``checksum`` (sha1) and ``source``, and ``sha256``.

    Args:
        folder: with the zips, ``NAME_vX.Y.Z.zip``.
        packed: those made now: they get ``source`` as their address. The others keep the one that is listed.
        source: address of the folder that they will be downloaded from; None: that of model_info.json itself.
        before: model_info.json as it was.
    """
    entries: dict[str, dict[str, str]] = {}
    sums = []
    for path in sorted(folder.glob("*.zip"), key=_order):
        if not ZIP.fullmatch(path.name):
            continue
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        listed = before.get(path.stem, {}).get("source")
        address = f"{source.rstrip('/')}/{path.name}" if source else path.name
        entries[path.stem] = {
            "checksum": hashlib.sha1(content).hexdigest(),  # the zoo's choice
            "source": address if path in packed or listed is None else listed,
            "sha256": sha256,
        }
        sums.append(f"{sha256}  {path.name}\n")
    texts = {SUMS: "".join(sums), MODEL_INFO: json.dumps(entries, indent=4) + "\n"}
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(text.encode())
    return [folder / name for name in texts]


def read_model_info(folder: Path) -> dict[str, dict[str, str]]:
    """Entries of the model_info.json in a folder; none where there is no such file.

    Raises:
        BundleError: if it cannot be read.
    """
    path = folder / MODEL_INFO
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
        if all(isinstance(entry, dict) for entry in content.values()):
            return dict(content)
        problem = "its values are not objects"
    except (ValueError, AttributeError) as error:
        problem = f"is not a JSON object: {error}"
    raise BundleError(Fault(str(path), "-", problem, "remove it; it is written again"))


def _order(path: Path) -> tuple[str, tuple[int, ...]]:
    found = ZIP.fullmatch(path.name)
    return (found["name"], tuple(map(int, found["version"].split(".")))) if found else (path.name, ())


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
