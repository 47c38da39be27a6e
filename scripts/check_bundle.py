"""Check bundles: name file, id and cure of every fault.

python scripts/check_bundle.py DIR_OR_ZIP [DIR_OR_ZIP ...]
python scripts/check_bundle.py --untrusted [--json] DIR_OR_ZIP [DIR_OR_ZIP ...]

The first imports the bundle's code and evaluates its configs: for bundles that you trust. The second evaluates, imports
and unpickles nothing; it lists what in the bundle could run, for you to judge. Status 1 if there is anything to name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from bundle_files import BundleError, Fault, read_bundle
from bundle_rules import static_faults
from bundle_zip import open_bundle
from untrusted import Finding, examine, report

LIVE = Path(__file__).with_name("bundle_live.py")


def check(path: Path) -> list[Fault]:
    """Return all faults of the bundle at ``path``, a folder or a zip; an empty list if it is clean."""
    try:
        with open_bundle(path) as root:
            bundle = read_bundle(root)
            # What is to be handed on must not need the repository.
            return static_faults(bundle) + live(root, isolated=bundle.is_packed or not path.is_dir())
    except BundleError as error:
        return error.faults


def live(root: Path, isolated: bool) -> list[Fault]:
    """Run the rules that import the bundle's code, from ``/`` and without PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(LIVE), str(root), *(["isolated"] if isolated else [])]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [Fault("-", "-", f"checking the code ended with status {done.returncode}: {last}", "mend what it names")]
    return [Fault(**fault) for fault in json.loads(done.stdout.splitlines()[-1])]


def look_into(path: Path) -> list[Finding]:
    """Return all that could run in the foreign bundle at ``path``, a folder or a zip.

    Raises:
        BundleError: if it is no bundle, or an unsafe zip.
    """
    with open_bundle(path) as root:
        return examine(root)


def main(arguments: list[str] | None = None) -> int:
    """Check every bundle named on the command line; 1 if any has a fault, or a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="DIR_OR_ZIP", help="a bundle's folder or its zip")
    parser.add_argument("--untrusted", action="store_true", help="evaluate nothing; list what could run")
    parser.add_argument("--json", action="store_true", help="with --untrusted: the list as JSON")
    options = parser.parse_args(arguments)
    if options.json and not options.untrusted:
        parser.error("--json goes with --untrusted")
    if options.untrusted:
        return untrusted(options.bundles, options.json)
    total = 0
    for path in options.bundles:
        faults = check(path)
        for fault in faults:
            print(fault)
        print(f"{path}: {len(faults)} fault(s)" if faults else f"{path}: clean")
        total += len(faults)
    return 1 if total else 0


def untrusted(paths: list[Path], as_json: bool) -> int:
    """Print what could run in each of the bundles; 1 if there is anything, or if one of them is refused."""
    pages: dict[str, list[dict[str, str]]] = {}
    for path in paths:
        try:
            found = look_into(path)
        except BundleError as error:
            print(f"{error}\n{path}: refused, nothing of it was written", file=sys.stderr)
            pages[str(path)] = [vars(Finding("not looked into", fault.problem, fault.id)) for fault in error.faults]
            continue
        pages[str(path)] = [vars(finding) for finding in found]
        if not as_json:
            print(f"{path}: {len(found)} finding(s) for a reader to judge\n{report(found)}".rstrip())
    if as_json:
        print(json.dumps(pages, indent=4))
    return 1 if any(pages.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
