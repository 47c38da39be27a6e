"""Pack a bundle into one zip that needs nothing of this repository.

python scripts/pack_bundle.py NAME [--output DIR]

The zip holds one folder, NAME: the bundle, with ``physics`` and ``shared_transforms`` copied into its package, as pip
vendors its own dependencies. The package has its version in its name, in imports and in configs: ``NAME.network``
becomes ``NAME_vX_Y_Z.network``, ``physics.noise`` becomes ``NAME_vX_Y_Z.physics.noise``. Python keeps one package of a
name, so only names that differ let packed bundles of any versions work in one process. The zip is deterministic.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from bundle_files import REPOSITORY, VENDORED, BundleError, Fault, packed_name, read_bundle
from check_bundle import check
from vendoring import Vendor

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
    for kept, target in {**dict(zip(KEPT, KEPT, strict=True)), name: packed}.items():
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
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
    os.close(handle)
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
                if path.is_file():
                    entry = zipfile.ZipInfo(path.relative_to(root.parent).as_posix(), EPOCH)
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    entry.create_system = 3  # Unix, whatever it is packed on
                    entry.external_attr = 0o100644 << 16
                    archive.writestr(entry, path.read_bytes())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def pack(name: str, output: Path, repository: Path) -> Path:
    """Pack bundle ``name`` of the repository into ``output``; returns the zip's path.

    Raises:
        BundleError: if there is no such bundle, or if the packed bundle has a fault. Nothing is written then.
    """
    bundle = repository / "bundles" / name
    if not name.isidentifier() or not (bundle / "configs").is_dir():
        there = sorted(path.parent.name for path in (repository / "bundles").glob("*/configs"))
        raise BundleError(Fault(f"bundles/{name}", "-", "is not a bundle", f"name one of {', '.join(there) or 'none'}"))
    with tempfile.TemporaryDirectory(prefix="pack-") as folder:
        root = stage(bundle, Path(folder), repository)
        if faults := check(root):
            raise BundleError(*faults)
        target = output / f"{name}_v{read_bundle(root).metadata['version']}.zip"
        write_zip(root, target)
    return target


def main(arguments: list[str] | None = None) -> int:
    """Pack the bundle named on the command line; 1 if it has faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", help="a folder in bundles/")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist", metavar="DIR", help="default: dist/")
    options = parser.parse_args(arguments)
    try:
        print(pack(options.name, options.output, REPOSITORY))
    except BundleError as error:
        print(f"{error}\n{options.name} is not packed: {len(error.faults)} fault(s)", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
