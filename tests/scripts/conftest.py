"""A repository with one tiny bundle that has no fault."""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from bundle_files import REPOSITORY
from pack_bundle import stage

NETWORK = '''"""A network of one weight."""
from physics.noise import sigma_from_snr
from torch import nn


class Scale(nn.Module):
    """Scale the image."""

    def __init__(self, channels: int, times: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.ones_(nn.Conv2d(channels, 1, 1).weight) * sigma_from_snr(1.0))
        self.times = times

    def forward(self, image):
        return nn.functional.conv2d(image, self.weight)
'''
FILES = {
    "physics/__init__.py": "",
    "physics/noise.py": "def sigma_from_snr(snr):\n    return 0.65 / snr\n",
    "physics/__pycache__/noise.pyc": "junk",
    "shared_transforms/__init__.py": "",
    "shared_transforms/errors.py": "import physics.noise\n\n\nclass QMRIError(ValueError):\n    pass\n",
    "shared_transforms/page.html.j2": "<p>{{ x }}</p>",
    "bundles/tinymap/LICENSE": "Apache-2.0",
    "bundles/tinymap/docs/README.md": "# tinymap",
    "bundles/tinymap/docs/data_license.txt": "none",
    "bundles/tinymap/configs/logging.conf": "[loggers]\nkeys=root\n",
    "bundles/tinymap/tinymap/__init__.py": "",
    "bundles/tinymap/tinymap/network.py": NETWORK,
    "bundles/tinymap/mlruns.db": "made by a run",
}
IMAGE = {
    **{"type": "image", "format": "magnitude", "num_channels": 2, "spatial_shape": ["*", "*"], "dtype": "float32"},
    **{"value_range": [0, 1], "channel_def": {"0": "first", "1": "second"}},
}
METADATA = {
    "schema": "https://example.org/meta_schema_20240725.json",
    "version": "0.2.1",
    "changelog": {"0.2.1": "mended", "0.2.0": "first"},
    **{"monai_version": "1.6.1", "pytorch_version": "2.13.0", "numpy_version": "2.4.6"},
    "required_packages_version": {},
    **{
        "name": "Tiny map",
        "task": "t",
        "description": "d",
        "authors": "a",
        "copyright": "c",
        "intended_use": "tests",
        "references": ["r"],
    },
    "acquisition": {"inversion_times_s": [0.1, 0.2]},
    "eval_metrics": {
        "T1": {
            "bias": {
                **{"value": 1.0, "unit": "percent", "n": 6, "confidence_interval": [0, 2]},
                "baseline": {"name": "mle", "value": 2},
            }
        }
    },
    "network_data_format": {
        "inputs": {"image": IMAGE},
        "outputs": {"pred": IMAGE | {"num_channels": 1, "channel_def": {"0": "T1"}, "channel_units": {"0": "s"}}},
    },
}
TOP = {
    "imports": ["$import sys", "$import torch", "$from shared_transforms.errors import QMRIError"],
    "bundle_root": ".",
    "dataset_dir": "$@bundle_root + '/data'",
    "output_dir": "$@bundle_root + '/output'",
    "device": "$torch.device('cpu')",
    "inversion_times_s": [0.1, 0.2],
    "network_def": {"_target_": "tinymap.network.Scale", "channels": 2, "times": "@inversion_times_s"},
    "network": "$@network_def.to(@device)",
    "initialize": ["$sys.path.insert(0, @bundle_root)"],
    "run": [],
    "finalize": [],
}
HANDLER = {"_target_": "StatsHandler"}
TRAIN = TOP | {
    "train": {
        "dataset": [],
        "inferer": {"_target_": "SimpleInferer"},
        "handlers": [HANDLER],
        "trainer": {"_target_": "SupervisedTrainer", "max_epochs": 1, "train_handlers": "@train#handlers"},
    },
    "validate": {
        "dataset": [],
        "inferer": {"_target_": "SimpleInferer"},
        "handlers": [HANDLER],
        "key_metric": {},
        "evaluator": {"_target_": "SupervisedEvaluator", "val_handlers": "@validate::handlers"},
    },
}
INFERENCE = TOP | {
    "dataset": [],
    "preprocessing": [],
    "postprocessing": [],
    "inferer": {"_target_": "SimpleInferer"},
    "handlers": [HANDLER],
    "evaluator": {"_target_": "SupervisedEvaluator", "val_handlers": "@handlers", "postprocessing": "@postprocessing"},
}
EVALUATE = {"_desc_": "on the best weights", "validate#handlers": [], "run": ["$@validate#evaluator.run()"]}
OTHER = {"network_def#channels": 2, "evaluator": {"_target_": "SupervisedEvaluator", "val_handlers": "@handlers"}}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4), "utf-8")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with physics, shared_transforms and the bundle tinymap."""
    root = tmp_path / "repository"
    for file, text in FILES.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text, "utf-8")
    bundle = root / "bundles/tinymap"
    (bundle / "models").mkdir()
    torch.save({"weight": torch.ones(1, 2, 1, 1)}, bundle / "models/model.pt")
    digest = hashlib.sha256((bundle / "models/model.pt").read_bytes()).hexdigest()
    entry = {"sha256": digest, "seed": 0, "commit": "0123abc", "recipe": "train", "hardware": "one core"}
    provenance = {"models/model.pt": entry | {"network": ["inference.json"]}}
    configs = {"metadata": METADATA | {"provenance": provenance}, "train": TRAIN, "inference": INFERENCE}
    for name, content in (configs | {"evaluate": EVALUATE, "other": OTHER}).items():
        write_json(bundle / f"configs/{name}.json", content)
    return root


@pytest.fixture
def tinymap(repository: Path) -> Path:
    """The bundle in the repository."""
    return repository / "bundles/tinymap"


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a bundle of this repository as its zip holds it; made once, so it is to be left as it is."""
    folder = tmp_path_factory.mktemp("packed")
    return cache(lambda name: stage(REPOSITORY / "bundles" / name, folder, REPOSITORY))
