"""Write what a bundle says in numbers of its maps."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.config import KeysCollection

from shared_transforms.atomic import atomic_write
from shared_transforms.io.writer import FileWriterd

_INTENDED_USE = "For research. Not a medical device: not for diagnosis or treatment."


class SaveSummaryd(FileWriterd):
    """Write ``item["summary"]`` to ``<output_dir>/<stem>/<stem>_summary.json``, and tables and pictures beside it.

    Tables stand in ``item["tables"]``, by name, where there are any: a text is written as ``<stem>_<name>.csv``, rows
    {column: value} of equal columns as that and as ``<stem>_<name>.json``. Pictures are the PNG files in
    ``item["pictures"]``, by name: ``<stem>_<name>.png``. Units stand in the names of the values. Each file is complete
    or absent, and goes into ``item["files"]``.

    Args:
        keys: key of the summary.
        output_dir: folder of the maps.
        name: what the file of the summary is called.
        software_name: for GeneratedBy.
        software_version: for GeneratedBy.
        weights_sha256: sha256 of the network's weights; None for an estimator without any.
        method: how the maps were computed, in a few words.
    """

    def __init__(
        self,
        keys: KeysCollection = "summary",
        *,
        output_dir: str | Path,
        software_name: str,
        software_version: str,
        weights_sha256: str | None = None,
        method: str = "",
        name: str = "summary",
    ) -> None:
        super().__init__(keys)
        self.output_dir, self.name = Path(output_dir), name
        self.generated_by = {"Name": software_name, "Version": software_version, "Method": method}
        if weights_sha256:
            self.generated_by["WeightsSHA256"] = weights_sha256

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the files added to ``files``."""
        item = dict(data)
        for key in self.key_iterator(item):
            base = self.output_dir / item["stem"] / item["stem"]
            files: dict[str, bytes] = {f"{base}_{n}.png": picture for n, picture in item.get("pictures", {}).items()}
            for name, table in item.get("tables", {}).items():
                text = table if isinstance(table, str) else _as_csv(table)
                files[f"{base}_{name}.csv"] = text.encode()
                if not isinstance(table, str):
                    files[f"{base}_{name}.json"] = self._document({name: list(table)})
            content = {**item[key], "notes": list(item.get("notes", []))}
            files[f"{base}_{self.name}.json"] = self._document(content)
            for path, data_of_file in files.items():
                with atomic_write(path) as file:
                    file.write(data_of_file)
            item["files"] = [*item.get("files", []), *files]
        return item

    def _document(self, content: Mapping[str, Any]) -> bytes:
        whole = {**content, "generated_by": self.generated_by, "intended_use": _INTENDED_USE}
        return (json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Numbers with six digits, lists joined by semicolons, yes and no as 1 and 0, what is unknown left empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ";".join(str(part) for part in value)
    return int(value) if isinstance(value, bool) else value
