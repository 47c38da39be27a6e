"""Show the bundles at work: simulate scans of a real head, map them, compare with the truth.

python scripts/demo.py [--bundle NAME] [--output DIR]

The head is nilearn's MNI152 template, deformed, a head that no training has seen. The scans are written as dcm2niix
and BIDS would write them, so what follows is what a user does with scans of their own: one ``python -m monai.bundle
run`` for each map.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from bundle_files import REPOSITORY
from demos import Context, Outcome

BUNDLES = sorted(path.stem for path in Path(__file__).with_name("demos").glob("[!_]*.py"))
sys.path[:0] = [str(REPOSITORY), *(str(REPOSITORY / "bundles" / name) for name in BUNDLES)]


def is_ready(bundle: str) -> bool:
    """Whether a bundle has weights to show."""
    return (REPOSITORY / "bundles" / bundle / "models" / "model.pt").is_file()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", choices=BUNDLES, help="default: all that have weights")
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="default: ./demo")
    parser.add_argument("--scale", type=float, default=1.0, metavar="S", help="of all sizes, for a quick look")
    parser.add_argument("--seed", type=int, metavar="N", help="another head")
    parser.add_argument("--models", type=Path, metavar="DIR", help="folder of other weights, of the same names")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="also draw the picture of the README")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstrations; 0 when all went well."""
    options, start = parse(arguments), time.perf_counter()
    models = options.models.resolve() if options.models else None

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:4.0f} s] {text}", flush=True)

    names = [options.bundle] if options.bundle else [name for name in BUNDLES if is_ready(name)]
    outcomes: dict[str, Outcome] = {}
    for name in names:
        module = importlib.import_module(f"demos.{name}")
        say(f"{name}: {module.SUMMARY} ...")
        context = Context(options.output.resolve() / name, say, models, options.scale, options.seed)
        outcomes[name] = module.show(context)
    say("done")
    for name, outcome in outcomes.items():
        print(f"\n{name}\n\n{outcome.table}\n")
        width = max(map(len, outcome.places))
        print("\n".join(f"{what:{width}}  {path}" for what, path in outcome.places.items()))
    if options.picture:
        from overview import draw

        draw([row for outcome in outcomes.values() for row in outcome.rows()], options.picture)
        print(f"\npicture: {options.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
