"""What generated documents say of one bundle alone; one module for each bundle, of the bundle's name."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle_files import Bundle
from docs_results import Results, Row, split_place


def no_change(metadata: dict[str, Any], bundle: Bundle) -> dict[str, Any]:
    """The metadata as they are."""
    return metadata


@dataclass(frozen=True)
class Documents:
    """What the documents of a bundle need beside its configs and results.

    Attributes:
        methods: name of a method in the tables to the name in documents.
        eval_metrics: ``eval_metrics`` of metadata.json from the results.
        losses: rows that tell where a classical method does better than the network; arguments as the template gives.
        headings: column of the tables to its heading, for tables that show all columns.
        split_place: what a target asks for, and where.
        adapt: changes of metadata.json that follow from the configs.
        network: class of ``network.py`` whose default values the model card shows, if it does.
        dispensable: beginnings of names among the weights that networks no longer keep.
    """

    methods: Mapping[str, str]
    eval_metrics: Callable[[Results], dict[str, Any]]
    losses: Callable[..., list[Row]]
    headings: Mapping[str, str] = field(default_factory=dict)
    split_place: Callable[[str], tuple[str, str]] = split_place
    adapt: Callable[[dict[str, Any], Bundle], dict[str, Any]] = no_change
    network: str | None = None
    dispensable: tuple[str, ...] = ()


def documents_of(bundle: str) -> Documents:
    """What is special of a bundle, from ``documents/<bundle>.py``.

    Raises:
        SystemExit: if there is no such module.
    """
    if importlib.util.find_spec(f"documents.{bundle}") is None:
        raise SystemExit(f"scripts/documents/{bundle}.py is not there: it names the methods and metrics of {bundle}")
    found = importlib.import_module(f"documents.{bundle}").DOCUMENTS
    assert isinstance(found, Documents)
    return found


def constant(module: Path, name: str) -> Any:
    """A literal that a module assigns at its top, read from its source: importing it would take torch.

    Raises:
        SystemExit: if it assigns no such name.
    """
    for node in ast.parse(module.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    raise SystemExit(f"{module} has no {name}")
