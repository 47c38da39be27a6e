"""Misspelt command line overrides are errors.

``python -m monai.bundle run --learning_rat 1e-3`` runs with the old learning rate: MONAI adds the unknown key to the
config, where nothing looks at it. ``check_overrides`` as an item of ``initialize`` stops such a run.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ComponentLocator, ConfigParser, ConfigWorkflow, run
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from monai.utils import ensure_tuple

from shared_transforms.errors import QMRIError

_COMMANDS = ("run", "run_workflow")
_OWN_KEYS = {"workflow_name", "args_file", *inspect.signature(run).parameters} - {"override"}
_OWN_KEYS |= set(inspect.signature(ConfigWorkflow).parameters) - {"override"}
_COMPONENT_KEYS = {"_target_", "_requires_", "_disabled_", "_desc_", "_mode_"}


def check_overrides(argv: Sequence[str] | None = None) -> None:
    """Compare the overrides of a ``python -m monai.bundle run`` command with its config files.

    An override must name an id that exists in the merged config; below an existing component it may also be a parameter
    of the component's ``_target_``. Ids in ``_meta_``, the options of ``run`` itself and the settings of ``--tracking``
    are free. Nothing happens in a process that is no such run.

    Args:
        argv: the command line, ``sys.argv`` by default.

    Raises:
        QMRIError: an override that names nothing (with the closest name that does), or a JSON key that stands twice in
            a config file.
    """
    argv = sys.argv if argv is None else argv
    arguments = _run_arguments(argv)
    if arguments is None:
        return
    given = _parse_fire(arguments)
    settings = {**_read_args_file(given.get("args_file")), **given}
    files = _file_list(settings.get("config_file"))
    for file in [*files, *_file_list(settings.get("meta_file"))]:
        _refuse_duplicates(file)
    config = _merged(files)
    free = _OWN_KEYS | _tracking_keys(settings.get("tracking"))
    for key in settings:
        if key not in free:
            _check_key(key, config, free, files)


def check_keys(keys: Iterable[str], files: Sequence[Path]) -> None:
    """Compare override keys with config files, as ``check_overrides`` does with those of a command line.

    Args:
        keys: ids such as "slices_at_once" or "inferer#tile".
        files: the config files, merged in this order.

    Raises:
        QMRIError: as ``check_overrides``.
    """
    for file in files:
        _refuse_duplicates(file)
    config = _merged(list(files))
    for key in keys:
        _check_key(key, config, set(), list(files))


def _run_arguments(argv: Sequence[str]) -> list[str] | None:
    """What follows ``run`` on the command line; None if the process is no bundle run."""
    if len(argv) < 2 or argv[1] not in _COMMANDS:
        return None
    program = Path(argv[0])
    if program.name != "__main__.py" or program.parent.name != "bundle":
        return None
    return list(argv[2:])


def _parse_fire(arguments: list[str]) -> dict[str, Any]:
    """Options and positional arguments as python-fire reads them (--key value, --key=value, --flag)."""
    if "--" in arguments:  # what follows belongs to fire
        arguments = arguments[: len(arguments) - 1 - arguments[::-1].index("--")]
    options: dict[str, Any] = {}
    positional = []
    waiting: str | None = None
    for argument in arguments:
        if re.match(r"--|-[a-zA-Z]", argument):
            if waiting is not None:
                options[waiting] = True
            key, equals, value = argument.lstrip("-").partition("=")
            key = key.replace("-", "_")
            waiting = None if equals else key
            if equals:
                options[key] = _value(value)
        elif waiting is not None:
            options[waiting], waiting = _value(argument), None
        else:
            positional.append(_value(argument))
    if waiting is not None:
        options[waiting] = True
    return {**dict(zip(inspect.signature(run).parameters, positional, strict=False)), **options}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        words = re.fullmatch(r"\s*[\[(](.*)[\])]\s*", text, re.DOTALL)  # fire takes [a.json,b.json] for a list of words
        return [w.strip().strip("'\"") for w in words[1].split(",") if w.strip()] if words else text


def _read_args_file(path: Any) -> dict[str, Any]:
    if not isinstance(path, str):
        return {}
    _refuse_duplicates(Path(path))
    return ConfigParser.load_config_file(path)


def _file_list(value: Any) -> list[Path]:
    if value is None:
        return []
    if isinstance(value, str) and not Path(value).is_file() and "," in value:
        value = value.split(",")
    return [Path(str(v)) for v in ensure_tuple(value)]


def _refuse_duplicates(file: Path) -> None:
    """A JSON key that stands twice: the first value is lost without a word."""
    if file.suffix.lower() != ".json" or not file.is_file():
        return

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        for key, _ in pairs:
            if sum(k == key for k, _ in pairs) > 1:
                raise QMRIError(
                    file=file, field=key, found="the key twice in one JSON object", expected="each key once",
                    remedy="remove or rename one of them: only the last one counts",
                )  # fmt: skip
        return seen

    try:
        json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise QMRIError(
            file=file, field="config file", found=f"not readable as JSON: {error}", expected="a JSON object",
            remedy="mend the file at the place named",
        ) from error  # fmt: skip


def _merged(files: list[Path]) -> ConfigParser:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI has said it already when it read them
        return ConfigParser(ConfigParser.load_config_files([str(f) for f in files]))


def _tracking_keys(tracking: Any) -> set[str]:
    """Top-level ids that --tracking adds to the config."""
    if tracking is None:
        return set()
    known = isinstance(tracking, str) and tracking in DEFAULT_EXP_MGMT_SETTINGS
    settings = DEFAULT_EXP_MGMT_SETTINGS[tracking] if known else ConfigParser.load_config_files(tracking)
    return set(settings.get("configs", {}))


def _check_key(key: str, config: ConfigParser, free: set[str], files: list[Path]) -> None:
    parts = re.split("::|#", key.removeprefix("+"))
    if parts[0] == ConfigParser.meta_key:
        return
    node = config.get()
    for depth, part in enumerate(parts):
        if isinstance(node, dict) and part in node:
            node = node[part]
            continue
        if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
            continue
        if depth == len(parts) - 1 and depth > 0 and _is_parameter(part, node):
            return
        _unknown(key, parts[:depth], part, node, config, free, files)


def _unknown(
    key: str, above: list[str], part: str, node: Any, config: ConfigParser, free: set[str], files: list[Path]
) -> None:
    parent = "#".join(above)
    if isinstance(node, dict):
        choices: set[str] = set(node) | (_COMPONENT_KEYS | (_parameters(node) or set()) if above else free)
        choices = {f"{parent}#{c}" if above else c for c in choices if isinstance(c, str)}
        if not above:
            choices |= {f"{k}#{leaf}" for k, v in node.items() if isinstance(v, dict) for leaf in v}
        tried = key if not above else f"{parent}#{part}"
        close = difflib.get_close_matches(tried, sorted(choices), n=3, cutoff=0.5)
        listed = ", ".join(close or sorted(choices)[:12])
        expected = f"an existing id; closest: {listed}" if close else f"an existing id, such as {listed}"
    elif isinstance(node, list):
        expected = f"an index from 0 to {len(node) - 1} of {parent}"
    else:
        expected = f"{parent} itself, which is {node!r} and has nothing below it"
    raise QMRIError(
        file=", ".join(str(f) for f in files) or None, field=f"--{key}", expected=expected,
        found=f"no {part!r} in {parent or 'the config'}",
        remedy="correct the spelling: MONAI would run with the old value and say nothing",
    )  # fmt: skip


def _is_parameter(name: str, node: Any) -> bool:
    """Whether a component takes such a parameter, as far as its signature tells."""
    if not isinstance(node, dict) or "_target_" not in node:
        return False
    if name in _COMPONENT_KEYS:
        return True
    parameters = _parameters(node)
    return parameters is None or name in parameters


def _parameters(node: dict[str, Any]) -> set[str] | None:
    """Parameter names of a component; None where they cannot be known (unresolved target, **kwargs)."""
    target = node.get("_target_")
    if not isinstance(target, str):
        return set()
    resolved = _locate(target)
    try:
        parameters = inspect.signature(resolved).parameters if callable(resolved) else None
    except (TypeError, ValueError):
        return None
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return set(parameters)


def _locate(target: str) -> Any:
    from pydoc import locate

    try:
        name = target if "." in target else ComponentLocator().get_component_module_name(target)
        if isinstance(name, str):
            return locate(name if "." in target else f"{name}.{target}")
    except Exception:  # an import that fails is for MONAI to report: here it only means "unknown"
        return None
    return None
