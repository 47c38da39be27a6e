"""Write what documents say of results: model cards, metadata.json, results sections of the README. No number by hand.

python scripts/write_docs.py [--check] [--bundle NAME]
python scripts/write_docs.py --register-weights RUN_DIR --as model.pt --bundle NAME
    [--members RUN_DIR [RUN_DIR ...] --buffers FILE --half]

The model card comes from templates/NAME/model_card.md.j2, the section of the README from
templates/NAME/readme_results.md.j2, metadata.json from itself, and the numbers in all of them from configs and
docs/results/*.json of the bundle, which training and experiments have written. documents/NAME.py has the names of the
methods and says which numbers are metrics.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from bundle_files import REPOSITORY, Bundle, bundle_names, read_bundle
from bundle_metadata import filled, wall_time
from docs_results import Results, markdown, method_name, number, pivot, whole_table
from documents import Documents, documents_of
from training_record import RecordError, register

TEMPLATES = Path(__file__).with_name("templates")
BEGIN = "<!-- results of {}: begin, written by scripts/write_docs.py -->"
END = "<!-- results of {}: end -->"


def environment(bundle: Bundle, results: Results, special: Documents) -> jinja2.Environment:
    """What the templates can use: the configs, the results, and functions that make tables of them."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # the documents are Markdown
    )
    module = bundle.root / bundle.name / "network.py"
    found.filters |= {"number": number, "method": partial(method_name, methods=special.methods), "wall_time": wall_time}
    found.globals |= {
        "bundle": bundle.name,
        "tables": results.tables,
        "trainings": results.trainings,
        "targets": results.targets(special.split_place),
        "losses": partial(special.losses, results),
        "markdown": partial(markdown, methods=special.methods),
        "pivot": partial(pivot, methods=special.methods),
        "whole_table": partial(whole_table, headings=special.headings, methods=special.methods),
        "configs": bundle.configs,
        "defaults": network_defaults(module, special.network) if special.network else {},
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


def documented(repository: Path) -> list[str]:
    """Bundles with a template of their model card."""
    return [name for name in bundle_names(repository) if (TEMPLATES / name / "model_card.md.j2").is_file()]


def documents(names: Sequence[str], repository: Path) -> dict[Path, str]:
    """All documents with results of bundles in them, as they should be.

    Args:
        names: the bundles.
        repository: root of the repository, with README.md and constraints.txt.

    Returns:
        Path to text.
    """
    found: dict[Path, str] = {}
    readme = (repository / "README.md").read_text("utf-8")
    for name in names:
        bundle_dir, special = repository / "bundles" / name, documents_of(name)
        bundle, results = read_bundle(bundle_dir), Results.read(bundle_dir / "docs" / "results")
        metadata = filled(bundle, results, repository / "constraints.txt", special)
        bundle.configs["metadata.json"] = metadata
        found[bundle_dir / "configs" / "metadata.json"] = json.dumps(metadata, indent=4, ensure_ascii=False) + "\n"
        templates = environment(bundle, results, special)
        found[bundle_dir / "docs" / "README.md"] = templates.get_template(f"{name}/model_card.md.j2").render()
        section = templates.get_template(f"{name}/readme_results.md.j2").render().strip()
        readme = with_section(readme, name, section)
    found[repository / "README.md"] = readme
    return found


def with_section(readme: str, name: str, section: str) -> str:
    """The README with another section of results of one bundle.

    Raises:
        SystemExit: if it has no such section.
    """
    begin, end = BEGIN.format(name), END.format(name)
    before, found_begin, rest = readme.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise SystemExit(f"README.md has no section for the results of {name}: {begin} ... {end}")
    return f"{before}{begin}\n\n{section}\n\n{end}{after}"


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
    parser.add_argument("--bundle", metavar="NAME", help="default: all that have a template of their model card")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a document is out of date")
    parser.add_argument("--register-weights", type=Path, metavar="RUN_DIR", help="output_dir of a training")
    parser.add_argument("--as", dest="name", metavar="FILE", help="name of the weights in models/, such as model.pt")
    text = "output_dirs of the trainings before, in order"
    parser.add_argument("--after", type=Path, metavar="RUN_DIR", nargs="+", default=[], help=text)
    text = "output_dirs of the trainings of an ensemble's further members, in order"
    parser.add_argument("--members", type=Path, metavar="RUN_DIR", nargs="+", default=[], help=text)
    text = "tensors that the ensemble has beside its members"
    parser.add_argument("--buffers", type=Path, metavar="FILE", help=text)
    parser.add_argument("--half", action="store_true", help="keep an ensemble's matrices in half precision")
    parser.add_argument("--epoch", type=int, help="ship the weights of this epoch instead of the best")
    record = parser.add_argument_group("for a run that was not tracked (they win over its record)")
    record.add_argument("--seed", type=int)
    record.add_argument("--commit", help="of the sources it ran with")
    record.add_argument("--hardware", help="the machine in words")
    record.add_argument("--log", type=Path, help="what MONAI printed; default: RUN_DIR.log")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if (options.register_weights is None) != (options.name is None):
        parser.error("--register-weights and --as belong together")
    names = documented(options.repository)
    if options.bundle is not None and options.bundle not in names:
        parser.error(f"--bundle must be one of {', '.join(names)}, got {options.bundle}")
    if options.register_weights is not None and options.bundle is None:
        parser.error("--register-weights needs --bundle: whose weights are they?")
    options.names = names if options.bundle is None else [options.bundle]
    return options


def main(arguments: list[str] | None = None) -> int:
    """Write the documents, or check them; 1 if one is out of date or weights cannot be registered."""
    options = parse(arguments)
    if options.register_weights is not None:
        given: dict[str, Any] = {key: getattr(options, key) for key in ("seed", "commit", "hardware", "log")}
        try:
            bundle = options.repository / "bundles" / options.bundle
            runs = {key: getattr(options, key) for key in ("epoch", "after", "members", "buffers", "half")}
            print(register(options.register_weights, bundle, options.name, given, **runs))
        except RecordError as error:
            print(f"not registered: {error}", file=sys.stderr)
            return 1
    wanted = documents(options.names, options.repository)
    if options.check:
        lines = differences(wanted)
        print("\n".join([*lines, "out of date: run python scripts/write_docs.py"] if lines else ["up to date"]))
        return 1 if lines else 0
    for path in write(wanted):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
