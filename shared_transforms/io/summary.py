"""Write what a bundle says in numbers of its maps."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from shared_transforms.atomic import atomic_write


class SaveSummaryd(MapTransform):
    """Write ``item["summary"]`` to ``<output_dir>/<stem>/<stem>_summary.json``, and its tables beside it.

    Tables are the texts of ``item["tables"]``, by name, where there are any: ``<stem>_<name>.csv``. Units stand in the
    names of the values. Each file is complete or absent, and goes into ``item["files"]``.

    Args:
        keys: key of the summary.
        output_dir: folder of the maps.
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
    ) -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)
        self.generated_by = {"Name": software_name, "Version": software_version, "Method": method}
        if weights_sha256:
            self.generated_by["WeightsSHA256"] = weights_sha256

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the files added to ``files``."""
        item = dict(data)
        for key in self.key_iterator(item):
            base = self.output_dir / item["stem"] / item["stem"]
            content = {
                **item[key], "notes": list(item.get("notes", [])), "generated_by": self.generated_by,
                "intended_use": "For research. Not a medical device: not for diagnosis or treatment.",
            }  # fmt: skip
            files = {f"{base}_{name}.csv": text for name, text in item.get("tables", {}).items()}
            files[f"{base}_summary.json"] = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
            for path, text in files.items():
                with atomic_write(path) as file:
                    file.write(text.encode())
            item["files"] = [*item.get("files", []), *files]
        return item
