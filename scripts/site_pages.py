"""Pages of the documentation site that are made of what the repository has: bundles, their results, modules.

``docs/site/conf.py`` calls :func:`write_pages` before each build. Texts that stand elsewhere are included by the pages,
not copied; :func:`for_site` makes the links in them work.
"""

from __future__ import annotations

import inspect
import json
import pydoc
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any

from bundle_files import REPOSITORY, bundle_names
from docs_results import Results, Table, markdown, number, whole_table
from documents import documents_of

SITE = REPOSITORY / "docs" / "site"
MADE = ("bundles", "reference")  # folders of the site that are written here, and nothing else is in them
ROWS_SHOWN = 40  # of one table; all of them are in its file
OPTIONS_OF_ALL = {
    "bundle_root": "folder of the bundle",
    "dataset_dir": "folder of the input; a training by simulation reads nothing from it",
    "output_dir": "folder of what is written, made if missing",
    "device": "where it is computed: `$torch.device('cpu')`, `$torch.device('cuda:1')`",
    "weights": "file of the weights, a `state_dict` of tensors",
    "method": "name of the estimator, as report and sidecars give it",
    "seed": "of everything random: the same seed draws the same samples",
    "epochs": "how many epochs the training lasts",
    "resume": "whether to go on from the newest checkpoint in `output_dir`",
    "tracking_uri": "where MLflow records the run; null for a file in `output_dir`",
    "val_interval": "epochs between two validations",
    "learning_rate": "of the optimiser, at its highest",
    "batch_size": "samples of one step",
}
PAGES = {
    "CONTRIBUTING.md": "add_a_bundle",
    "README.md": "index",
    "CHANGELOG.md": "changelog",
    "SECURITY.md": "security",
}


def modules_of(package: str, folder: Path) -> list[str]:
    """Public modules and packages directly in a package, by their dotted names."""
    found = [path.stem for path in folder.glob("*.py")] + [path.parent.name for path in folder.glob("*/__init__.py")]
    return sorted(f"{package}.{name}" for name in found if not name.startswith("_"))


def for_site(text: str, source: Path, repository: Path = REPOSITORY) -> str:
    """A text of the repository with its links to files of the repository turned to those of the site.

    Pages of the site are linked as pages, figures and other files as files, by paths from the root of the site's
    sources; links to other places and within the text stay as they are.

    Args:
        text: Markdown.
        source: file it stands in, below ``repository``.
        repository: root of the repository.

    Raises:
        ValueError: for a link to a file that is not there.
    """

    def turned(match: re.Match[str]) -> str:
        opening, target = match.groups()
        if re.match(r"[a-z]+:|#|/", target):
            return match.group(0)
        path, hash_mark, anchor = target.partition("#")
        there = normpath((source.relative_to(repository).parent / path).as_posix())
        return f"{opening}{_place(there, repository)}{hash_mark}{anchor})"

    return re.sub(r"(!?\[[^\]\[]*\]\()([^)\s]+)\)", turned, text)


def _place(path: str, repository: Path) -> str:
    """Where the site has a file or folder of the repository."""
    if not (repository / path).exists():
        raise ValueError(f"a link to {path}, which is not there")
    card = re.fullmatch(r"bundles/(\w+)/docs/(README\.md|results)", path)
    if card:
        return f"/bundles/{card[1]}/{'index' if card[2] == 'README.md' else 'results'}.md"
    page = PAGES.get(path) or (re.fullmatch(r"docs/(\w+)\.md", path) or {1: None})[1]
    if page:
        return f"/{page}.md"
    return "/" + relpath(path, "docs/site")


def page_of(bundle: str) -> str:
    """First page of a bundle: its model card, and what else there is."""
    return f"""```{{include}} /../../bundles/{bundle}/docs/README.md
```

```{{toctree}}
:hidden:

interface
configuration
results
api
```
"""


def interface_page(bundle: str, metadata: Mapping[str, Any]) -> str:
    """Inputs and outputs with units, from metadata.json."""
    lines = ["# Inputs and outputs", "", f"From `configs/metadata.json` of `{bundle}`, version {metadata['version']}."]
    for key in (key for key in metadata if key.endswith("network_data_format")):
        prefix = key.removesuffix("network_data_format").strip("_")
        for part, images in metadata[key].items():
            title = part.replace("_", " ") + (f", {prefix.upper()}" if prefix else "")
            lines += ["", f"## {title[0].upper()}{title[1:]}", "", markdown(_images(images), _HEADINGS)]
    acquisition = [{"value": f"`{name}`", "is": _shown(value)} for name, value in metadata["acquisition"].items()]
    lines += ["", "## Acquisition that the weights were trained for", ""]
    return "\n".join([*lines, markdown(acquisition, {"value": "value", "is": "is"}), ""])


_HEADINGS = {"name": "name", "what": "what", "shape": "channels, shape", "channels": "channels are", "unit": "unit",
             "range": "range", "dtype": "type"}  # fmt: skip


def _images(images: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for name, image in images.items():
        units = image.get("channel_units", {})
        definition = list(image.get("channel_def", {}).values()) or ["-"]
        shape = " x ".join(str(length) for length in image.get("spatial_shape", []))
        yield {
            "name": f"`{name}`",
            "what": ", ".join(dict.fromkeys(image[k] for k in ("format", "type") if k in image)),
            "shape": str(image.get("num_channels", "-")) + (f", {shape}" if shape else "").replace("*", "any"),
            "channels": ", ".join(definition if len(definition) <= 8 else [*definition[:2], "...", definition[-1]]),
            "unit": image.get("unit") or ", ".join(dict.fromkeys(units.values())) or "-",
            "range": " to ".join(number(value) for value in image.get("value_range", [])) or "-",
            "dtype": image.get("dtype", "-"),
        }


def values_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a user changes: the values at the top of a config, up to the first object."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            break
        if key != "imports" and not key.startswith("_"):
            found[key] = value
    return found


def meaning(key: str, config: Mapping[str, Any]) -> str:
    """What a value of a config means.

    It is what the config's ``_desc_`` says of it, or else what all bundles share, or else the docstring of the class or
    function that it is handed to; empty where none of them says anything.
    """
    said = _clauses(key, config.get("_desc_", ""))
    return said or OPTIONS_OF_ALL.get(key, "") or _from_docstring(key, config)


def _clauses(key: str, description: str) -> str:
    """The sentences of a description that explain a value, alone or with its neighbours: "key: ..."."""
    clauses = re.split(r"(?<=[.\w)]) ?[.;] (?=[A-Z]|[a-z_0-9, ]+:)", description)
    told = [c for c in clauses if re.search(rf"(?<![\w.]){key}(?![\w.])", c) and re.match(r"[\w, ]+(:| is | are )", c)]
    own = [c.partition(":")[2].strip() if c.startswith(f"{key}:") else c.strip() for c in told]
    return ". ".join(own).rstrip(".")


def _from_docstring(key: str, config: Mapping[str, Any]) -> str:
    for target, argument in _uses(key, config):
        found = pydoc.locate(target)
        for text in (inspect.getdoc(found) or "", inspect.getdoc(getattr(found, "__init__", None)) or ""):
            told = argument_text(text, argument)
            if told:
                return told
    return ""


def _uses(key: str, node: Any) -> Iterator[tuple[str, str]]:
    """Targets, with the argument, that take a value as it is or in an expression; as it is first."""
    found: list[tuple[bool, str, str]] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            target = node.get("_target_")
            for argument, value in node.items():
                words = value if isinstance(value, list) else [value]
                ours = isinstance(target, str) and "." in target and not target.startswith("$")
                if ours and any(isinstance(word, str) and re.search(rf"@{key}(?![\w#:])", word) for word in words):
                    found.append((value != f"@{key}", str(target), argument))
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(node)
    yield from ((target, argument) for _, target, argument in sorted(found, key=lambda use: use[0]))


def argument_text(docstring: str, argument: str) -> str:
    """What a docstring in Google's style says of an argument, on one line; empty where it says nothing."""
    lines = docstring.expandtabs().splitlines()
    for number_, line in enumerate(lines):
        entry = re.match(r"( +)([\w*, ]+?): (.+)", line)
        if entry and argument in re.split(r", ", entry[2]):
            rest = []
            for more in lines[number_ + 1 :]:
                if not more.startswith(entry[1] + " "):
                    break
                rest.append(more.strip())
            text = re.sub(r":\w+:(`+)~?", r"\1", " ".join([entry[3], *rest]))  # roles are of reStructuredText
            return text.replace("``", "`").rstrip(".")
    return ""


def _shown(value: Any) -> str:
    """A value of a config as it is written, long lists cut."""
    if isinstance(value, list) and len(value) > 8:
        return f"`{json.dumps(value[:3])[:-1]}, ..., {json.dumps(value[-1])}]`, {len(value)} values"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def configuration_page(bundle: str, configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Values that a user changes, their defaults and what they mean, and the overlays."""
    lines = [
        "# Configuration",
        "",
        "Each value can be given on the command line, `--KEY VALUE`, or in a file of your own",
    ]
    lines += ["that is named after the first in `--config_file`. Units stand in the names or in the text."]
    for name in ("inference.json", "train.json"):
        config = configs[name]
        rows = [
            {"key": f"`{key}`", "default": _shown(value), "meaning": meaning(key, config)}
            for key, value in values_of(config).items()
        ]
        table = markdown(rows, {"key": "key", "default": "default", "meaning": "meaning"})
        lines += ["", f"## {name}", "", _escaped(config["_desc_"]), "", table]
    overlays = [
        {
            "file": f"`{name}`",
            "what": config.get("_desc_", ""),
            "keys": ", ".join(f"`{k}`" for k in config if k[0] != "_"),
        }
        for name, config in sorted(configs.items())
        if name not in ("inference.json", "train.json", "metadata.json")
    ]
    lines += [
        "",
        "## Other configs",
        "",
        markdown(overlays, {"file": "file", "what": "what", "keys": "keys it has"}),
        "",
    ]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text as Markdown that shows it as it is."""
    return re.sub(r"([_*\[\]<>])", r"\\\1", text)


def results_page(bundle: str, results: Results, folder: Path) -> str:
    """Every table of results with its provenance."""
    special = documents_of(bundle)
    lines = [
        "# Results",
        "",
        "Every table as the experiments wrote it, by the command in the model card. Long ones are",
    ]
    lines += [f"cut to {ROWS_SHOWN} rows here and whole in their files."]
    for table in results.tables.values():
        rows = table.rows[:ROWS_SHOWN]
        lines += ["", f"## {table.name}", "", _provenance(table, folder), ""]
        notes = table.provenance.get("notes", [])
        lines += [f"{_escaped(note)}\n" for note in ([notes] if isinstance(notes, str) else notes)]
        lines += [whole_table(rows, special.headings, special.methods)]
        if len(table.rows) > len(rows):
            lines += ["", f"{len(table.rows) - len(rows)} more rows in the file."]
    lone = sorted(path for path in folder.glob("*.csv") if path.stem not in results.tables)
    lines += ["", "## Weights", "", markdown([_training(*item) for item in results.trainings.items()], _TRAINING), ""]
    lines += [f"Also: [{path.name}](/{relpath(path.relative_to(REPOSITORY), 'docs/site')})\n" for path in lone]
    return "\n".join(lines)


def _provenance(table: Table, folder: Path) -> str:
    made = table.provenance
    file = relpath((folder / f"{table.name}.csv").relative_to(REPOSITORY), "docs/site")
    seed = "no seed" if made.get("seed") is None else f"seed {made['seed']}"
    parts = (f"commit `{made.get('commit')}`", seed, str(made.get("date"))[:10], _hardware(made.get("hardware")))
    return f"[{table.name}.csv](/{file}), {len(table.rows)} rows; {', '.join(parts)}"


def _hardware(hardware: Any) -> str:
    if not isinstance(hardware, Mapping):
        return str(hardware)
    return f"{hardware.get('gpu') or hardware.get('cpu')}, {hardware.get('threads')} thread(s)"


_TRAINING = {"weights": "weights", "sha256": "sha256", "seed": "seed", "commit": "commit", "hardware": "hardware"}


def _training(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: record.get(key) for key in _TRAINING}
    return found | {"weights": f"`{name}`", "sha256": f"`{str(record.get('sha256'))[:12]}`",
                    "hardware": _hardware(record.get("hardware"))}  # fmt: skip


def api_page(title: str, modules: Sequence[str]) -> str:
    """Reference of modules from their docstrings."""
    lines = [f"# {title}", ""]
    for module in modules:
        lines += [f"## {module}", "", "```{eval-rst}", f".. automodule:: {module}", "   :members:"]
        lines += ["   :show-inheritance:", "```", ""]
    return "\n".join(lines)


def pages(repository: Path = REPOSITORY) -> dict[str, str]:
    """All pages that are made here: path below the site's sources, and text."""
    found: dict[str, str] = {}
    for name in bundle_names(repository):
        root = repository / "bundles" / name
        configs = {path.name: json.loads(path.read_text("utf-8")) for path in (root / "configs").glob("*.json")}
        results = Results.read(root / "docs" / "results")
        found[f"bundles/{name}/index.md"] = page_of(name)
        found[f"bundles/{name}/interface.md"] = interface_page(name, configs["metadata.json"])
        found[f"bundles/{name}/configuration.md"] = configuration_page(name, configs)
        found[f"bundles/{name}/results.md"] = results_page(name, results, root / "docs" / "results")
        found[f"bundles/{name}/api.md"] = api_page(f"Modules of {name}", modules_of(name, root / name))
    for package in ("physics", "shared_transforms"):
        for module in modules_of(package, repository / package):
            found[f"reference/{module}.md"] = api_page(module, [module]).replace(f"## {module}\n", "", 1)
    return found


def write_pages(site: Path = SITE) -> None:
    """Write all pages; those that are as they should be keep their time, so that Sphinx reads only what changed."""
    wanted = pages()
    for name, text in wanted.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
    for folder in MADE:
        for path in (site / folder).rglob("*.md"):
            if path.relative_to(site).as_posix() not in wanted:
                path.unlink()
