"""Write what documents say of results: model card, metadata.json, results section of the README. No number by hand.

python scripts/write_docs.py [--check]
python scripts/write_docs.py --register-weights RUN_DIR --as model.pt

The model card comes from templates/model_card.md.j2, the section of the README from templates/readme_results.md.j2,
metadata.json from itself, and the numbers in all of them from configs and docs/results/*.json of the bundle, which
training and experiments have written.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import sys
from pathlib import Path
from typing import Any

import jinja2
from bundle_files import REPOSITORY, Bundle, read_bundle
from bundle_metadata import filled, wall_time
from docs_results import Results, markdown, method_name, number, pivot
from training_record import RecordError, register

BUNDLE = REPOSITORY / "bundles" / "rim_relaxometry"
NETWORK = "RecurrentInferenceMachine"
TEMPLATES = Path(__file__).with_name("templates")
BEGIN, END = "<!-- results: begin, written by scripts/write_docs.py -->", "<!-- results: end -->"


def environment(bundle: Bundle, results: Results) -> jinja2.Environment:
    """What the templates can use: the configs, the results, and functions that make tables of them."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # the documents are Markdown
    )
    found.filters |= {"number": number, "method": method_name, "wall_time": wall_time}
    found.globals |= {
        "tables": results.tables,
        "trainings": results.trainings,
        "targets": results.targets(),
        "losses": results.losses,
        "markdown": markdown,
        "pivot": pivot,
        "configs": bundle.configs,
        "defaults": network_defaults(bundle.root / bundle.name / "network.py", NETWORK),
        "metadata": bundle.metadata,
        "figures": sorted(path.name for path in (bundle.root / "docs" / "figures").glob("*.png")),
    }
    return found


def network_defaults(module: Path, name: str) -> dict[str, Any]:
    """Default values of the arguments of a class, read from its source: importing it would take torch."""
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == name:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    given = method.args.args[len(method.args.args) - len(method.args.defaults) :]
                    pairs = zip(given, method.args.defaults, strict=True)
                    return {argument.arg: ast.literal_eval(value) for argument, value in pairs}
    raise SystemExit(f"{module} has no class {name}")


def documents(bundle_dir: Path, repository: Path) -> dict[Path, str]:
    """All documents with results in them, as they should be.

    Args:
        bundle_dir: the bundle.
        repository: root of the repository, with README.md and constraints.txt.

    Returns:
        Path to text.
    """
    bundle, results = read_bundle(bundle_dir), Results.read(bundle_dir / "docs" / "results")
    found: dict[Path, str] = {}
    metadata = filled(bundle, results, repository / "constraints.txt")
    bundle.configs["metadata.json"] = metadata
    found[bundle_dir / "configs" / "metadata.json"] = json.dumps(metadata, indent=4, ensure_ascii=False) + "\n"
    templates = environment(bundle, results)
    found[bundle_dir / "docs" / "README.md"] = templates.get_template("model_card.md.j2").render()
    section = templates.get_template("readme_results.md.j2").render().strip()
    readme = (repository / "README.md").read_text("utf-8")
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md has no section for the results: {BEGIN} ... {END}")
    found[repository / "README.md"] = f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"
    return found


def differences(wanted: dict[Path, str]) -> list[str]:
    """For each document that is not as it should be, its first differing lines."""
    lines: list[str] = []
    for path, text in wanted.items():
        there = path.read_text("utf-8") if path.is_file() else ""
        if there != text:
            changes = difflib.unified_diff(
                there.splitlines(), text.splitlines(), str(path), "as generated", lineterm="", n=0
            )
            lines += list(changes)[:12]
    return lines


def write(wanted: dict[Path, str]) -> list[Path]:
    """Write the documents that differ; returns them."""
    changed = [path for path, text in wanted.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], "utf-8")
    return changed


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a document is out of date")
    parser.add_argument("--register-weights", type=Path, metavar="RUN_DIR", help="output_dir of a training")
    parser.add_argument("--as", dest="name", metavar="FILE", help="model.pt, model_t2.pt or resnet.pt")
    parser.add_argument("--epoch", type=int, help="ship the weights of this epoch instead of the best")
    record = parser.add_argument_group("for a run that was not tracked (they win over its record)")
    record.add_argument("--seed", type=int)
    record.add_argument("--commit", help="of the sources it ran with")
    record.add_argument("--hardware", help="the machine in words")
    record.add_argument("--log", type=Path, help="what MONAI printed; default: RUN_DIR.log")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help=argparse.SUPPRESS)
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if (options.register_weights is None) != (options.name is None):
        parser.error("--register-weights and --as belong together")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Write the documents, or check them; 1 if one is out of date or weights cannot be registered."""
    options = parse(arguments)
    if options.register_weights is not None:
        given: dict[str, Any] = {key: getattr(options, key) for key in ("seed", "commit", "hardware", "log")}
        try:
            print(register(options.register_weights, options.bundle, options.name, given, options.epoch))
        except RecordError as error:
            print(f"not registered: {error}", file=sys.stderr)
            return 1
    wanted = documents(options.bundle, options.repository)
    if options.check:
        lines = differences(wanted)
        print("\n".join([*lines, "out of date: run python scripts/write_docs.py"] if lines else ["up to date"]))
        return 1 if lines else 0
    for path in write(wanted):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
