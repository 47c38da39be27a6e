"""Pack bundles, each into one zip that needs nothing of this repository, and list them as the MONAI model zoo does.

python scripts/pack_bundle.py [NAME ...] [--output DIR] [--source URL]

Beside the zips stand SHA256SUMS and model_info.json, in the zoo's form. A zip holds one folder, NAME: the bundle, with
``physics`` and ``shared_transforms`` copied into its package, as pip vendors its own dependencies. The package has its
version in its name, in imports and in configs: ``NAME.network`` becomes ``NAME_vX_Y_Z.network``, ``physics.noise``
becomes ``NAME_vX_Y_Z.physics.noise``. Python keeps one package of a name, so only names that differ let packed bundles
of any versions work in one process. The zip is deterministic.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from bundle_files import REPOSITORY, VENDORED, BundleError, Fault, bundle_names, packed_name, read_bundle
from check_bundle import check
from vendoring import Vendor
from zoo import read_model_info, write_lists

from shared_transforms.atomic import atomic_write

KEPT = ("LICENSE", "configs", "models", "docs")
JUNK = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "*.tmp")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold


def stage(bundle: Path, folder: Path, repository: Path) -> Path:
    """Copy the bundle into ``folder``, self-contained; returns its new root.

    Raises:
        BundleError: if an import or a name cannot be replaced safely.
    """
    name = bundle.name
    packed = packed_name(name, str(read_bundle(bundle).metadata.get("version")))
    root = folder / name
    root.mkdir(parents=True)
    for kept, target in [*((kept, kept) for kept in KEPT), (name, packed)]:
        source = bundle / kept
        if source.is_dir():
            shutil.copytree(source, root / target, ignore=JUNK)
        elif source.is_file():
            shutil.copy(source, root / target)
    package = root / packed
    for shared in VENDORED:
        if (package / shared).exists() or (package / f"{shared}.py").exists():
            taken = Fault(f"{name}/{shared}", "-", "stands where the shared package is copied to", "rename it")
            raise BundleError(taken)
        shutil.copytree(repository / shared, package / shared, ignore=JUNK)
    vendor = Vendor(name, package)
    faults = []
    for path in [*sorted(package.rglob("*.py")), *sorted((root / "configs").glob("*.json"))]:
        rewrite = vendor.python if path.suffix == ".py" else vendor.json
        try:
            path.write_text(rewrite(path.read_text("utf-8")), "utf-8")
        except ValueError as error:
            file = path.relative_to(root).as_posix().replace(f"{packed}/", f"{name}/", 1)
            faults.append(Fault(file, "-", str(error), "write the name in one plain literal, or import it"))
    if faults:
        raise BundleError(*faults)
    return root


def write_zip(root: Path, target: Path) -> None:
    """Write folder ``root`` to ``target``: sorted entries, fixed times and modes, in place only when complete."""
    with atomic_write(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
            if path.is_file():
                entry = zipfile.ZipInfo(path.relative_to(root.parent).as_posix(), EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.create_system = 3  # Unix, whatever it is packed on
                entry.external_attr = 0o100644 << 16
                archive.writestr(entry, path.read_bytes())


def pack(name: str, output: Path, repository: Path) -> Path:
    """Pack bundle ``name`` of the repository into ``output``; returns the zip's path.

    Raises:
        BundleError: if there is no such bundle, or if the packed bundle has a fault. Nothing is written then.
    """
    bundle = repository / "bundles" / name
    if not name.isidentifier() or not (bundle / "configs").is_dir():
        there = ", ".join(bundle_names(repository)) or "none"
        raise BundleError(Fault(f"bundles/{name}", "-", "is not a bundle", f"name one of {there}"))
    with tempfile.TemporaryDirectory(prefix="pack-") as folder:
        root = stage(bundle, Path(folder), repository)
        if faults := check(root):
            raise BundleError(*faults)
        target = output / f"{name}_v{read_bundle(root).metadata['version']}.zip"
        write_zip(root, target)
    return target


def distribute(names: list[str], output: Path, repository: Path, source: str | None = None) -> list[Path]:
    """Pack bundles into ``output`` and write the zoo's lists beside them; returns the paths of all.

    Zips of other versions that are there stay, and stay listed.

    Args:
        names: of the bundles.
        output: the folder.
        repository: with the bundles.
        source: address of the folder that the zips will be downloaded from.

    Raises:
        BundleError: if a bundle cannot be packed, or a model_info.json that is there cannot be read. Every file is then
            as it was.
    """
    output.mkdir(parents=True, exist_ok=True)
    listed = read_model_info(output)
    with tempfile.TemporaryDirectory(prefix=".pack-", dir=output) as folder:
        made = [pack(name, Path(folder), repository) for name in names]
        packed = [output / path.name for path in made]
        for path, target in zip(made, packed, strict=True):
            if target.is_file() and target.read_bytes() != path.read_bytes():
                print(f"{target} has changed: raise the version if it was published", file=sys.stderr)
            os.replace(path, target)
    return packed + write_lists(output, packed, source, listed)


def main(arguments: list[str] | None = None) -> int:
    """Pack the bundles named on the command line; 1 if one has faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="folders in bundles/; default: all")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist", metavar="DIR", help="default: dist/")
    parser.add_argument("--source", metavar="URL", help="address of the folder that the zips will be downloaded from")
    options = parser.parse_args(arguments)
    names = options.names or bundle_names(REPOSITORY)
    try:
        for path in distribute(names, options.output, REPOSITORY, options.source):
            print(path)
    except BundleError as error:
        print(f"{error}\n{' '.join(names)}: nothing is packed, {len(error.faults)} fault(s)", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
