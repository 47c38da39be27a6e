"""A finding, and the page that groups findings for a reader."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Each group in the order of the page, and what a reader is to make of it.
GROUPS = {
    "links and devices": "point outside the bundle, or are no files",
    "modules in front of others": "are imported in the place of Python's own or an installed package",
    "expressions": "$ text of a config that Python evaluates",
    "targets": "what a config calls by _target_, or by a name in an argument, and is not on the list of known names",
    "imports": "$import of a config, outside the list of known packages",
    "macros": "% text of a config that reads another file",
    "addresses": "places that configs or code name on a network",
    "logging": "class and arguments of a logging file, which Python evaluates",
    "own targets": "_target_ and imports of configs that call the bundle's own code: read that code",
    "own code": "Python that runs with all your rights when configs call it",
    "runs text as code": "in the bundle's code",
    "evaluates configs": "in the bundle's code, with MONAI's means",
    "starts programs": "in the bundle's code",
    "native code": "in the bundle's code",
    "network": "in the bundle's code",
    "unpickles": "in the bundle's code: a pickle can run anything",
    "writes or deletes files": "in the bundle's code",
    "names that cannot be followed": "in the bundle's code: what they call is seen only by reading",
    "changes the process": "in the bundle's code: environment, import path, modules, exit",
    "weights": "a file of weights that could run code, or holds more than tensors",
    "files of other kinds": "no kind of file that a bundle needs",
    "not looked into": "could not be read; nothing is known of it",
}


@dataclass(frozen=True, order=True)
class Finding:
    """One thing for a reader to judge.

    Attributes:
        group: a key of GROUPS.
        text: what was found: expression, name, call.
        file: path below the bundle's root.
        place: config id or line; empty for the file as a whole.
    """

    group: str
    text: str
    file: str
    place: str = ""


def report(findings: Iterable[Finding]) -> str:
    """The findings as a page: by group, equal ones together with all their places."""
    lines: list[str] = []
    findings = list(findings)
    for group, meaning in GROUPS.items():
        texts: dict[str, dict[str, list[str]]] = {}
        for finding in findings:
            if finding.group == group:
                texts.setdefault(finding.text, {}).setdefault(finding.file, []).append(finding.place)
        if texts:
            count = sum(len(places) for files in texts.values() for places in files.values())
            lines.append(f"{group} ({count}): {meaning}")
        if group == "own targets":  # the code is to be read anyway
            lines.append(f"  {', '.join(sorted(shown(text) for text in texts))}")
            continue
        for text, files in texts.items():
            lines.append(f"  {shown(text)}")
            for file, places in files.items():
                named = ", ".join(place for place in places if place)
                lines.append(f"      {shown(file)}{': ' + shown(named) if named else ''}")
    return "\n".join(lines)


def shown(text: str) -> str:
    """The text with everything escaped that a terminal would act upon or that looks like another character."""
    return text.encode("unicode_escape").decode("ascii") if not text.isascii() or not text.isprintable() else text
