"""Register a packed bundle in MLflow's model registry.

python scripts/register_model.py ZIP_OR_NAME [--tracking-uri URI]

A name of bundles/ is packed first. The model is the zip and the file bundle_model.py beside it, nothing pickled. Where
the packages that the bundle lists are installed, and this repository is not, it runs on an array:

    model = mlflow.pyfunc.load_model("models:/rim_relaxometry/1")
    maps = model.predict(array, params={"sidecar": sidecar, "voxel_size_mm": [1.5, 1.5, 3.0]})  # {"T1map": ...}

The same zip is registered once. MLflow's variables (MLFLOW_TRACKING_URI and those of credentials) are respected.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

from bundle_files import REPOSITORY, BundleError, Fault, read_bundle
from bundle_zip import open_bundle

MODEL = Path(__file__).with_name("bundle_model.py")
LONGEST_DESCRIPTION = 5000  # characters that MLflow's registry keeps of a version
PARAMETERS = {"sidecar": "{}", "overlay": "", "overrides": "{}"}


def register(archive: Path, tracking_uri: str | None = None) -> tuple[str, str]:
    """Register the bundle in a zip; what is registered already is left as it is.

    Args:
        archive: zip that pack_bundle.py made.
        tracking_uri: of MLflow; default the variable MLFLOW_TRACKING_URI, else MLflow's own.

    Returns:
        Name and version of the model.

    Raises:
        BundleError: if it is no zip of a bundle.
    """
    if not zipfile.is_zipfile(archive):
        raise BundleError(Fault(str(archive), "-", "is not a zip", "give a zip that pack_bundle.py made, or a name"))
    with open_bundle(archive) as root:
        bundle = read_bundle(root)
        if not bundle.is_packed:
            raise BundleError(Fault(str(archive), "-", "is not self-contained", "pack the bundle: pack_bundle.py"))
        card = (root / "docs" / "README.md").read_text("utf-8")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    client = mlflow.MlflowClient()
    for known in client.search_model_versions(f"name = '{bundle.name}'"):
        if known.tags.get("sha256") == digest:
            return bundle.name, str(known.version)
    mlflow.set_experiment(bundle.name)
    warnings.filterwarnings("ignore", ".*input example was not provided")  # what a bundle takes, its model card shows
    with mlflow.start_run(run_name=f"registration of {archive.name}", tags={"bundle_version": _version(bundle)}):
        logged = mlflow.pyfunc.log_model(
            name=bundle.name,
            python_model=str(MODEL),
            artifacts={"bundle": str(archive)},
            model_config={"bundle": bundle.name, "sha256": digest},
            signature=_signature(),
            pip_requirements=_requirements(bundle.metadata),
            registered_model_name=bundle.name,
        )
    version = str(logged.registered_model_version)
    _describe(client, bundle, version, card, digest)
    return bundle.name, version


def _describe(client: Any, bundle: Any, version: str, card: str, digest: str) -> None:
    """Model card, versions and digests, where MLflow shows them."""
    sys.path.insert(0, str(REPOSITORY))
    from shared_transforms.tracking.card import description

    client.update_registered_model(bundle.name, bundle.metadata["description"])
    client.update_model_version(bundle.name, version, description(card, LONGEST_DESCRIPTION))
    weights = {path: origin["sha256"] for path, origin in bundle.metadata["provenance"].items()}
    tags = {"bundle_version": _version(bundle), "sha256": digest}
    for key, value in (tags | {f"sha256 {path}": value for path, value in weights.items()}).items():
        client.set_model_version_tag(bundle.name, version, key, value)


def _version(bundle: Any) -> str:
    return str(bundle.metadata["version"])


def _signature() -> Any:
    """An array [X, Y, Z, N] and the parameters of a request."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    numbers = [ParamSpec(name, "double", [], shape=(-1,)) for name in ("voxel_size_mm", "affine")]
    texts = [ParamSpec(name, "string", default) for name, default in PARAMETERS.items()]
    inputs = Schema([TensorSpec(np.dtype("float32"), (-1, -1, -1, -1))])
    return ModelSignature(inputs, params=ParamSchema([*numbers, *texts]))


def _requirements(metadata: dict[str, Any]) -> list[str]:
    """Versions that the bundle was made with, as pip takes them."""
    own = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    versions = {name: metadata[key] for name, key in own.items()} | metadata["required_packages_version"]
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def main(arguments: list[str] | None = None) -> int:
    """Register the bundle named on the command line; 1 if it has faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", metavar="ZIP_OR_NAME", help="a zip that pack_bundle.py made, or a folder in bundles/")
    parser.add_argument("--tracking-uri", metavar="URI", help="default: MLFLOW_TRACKING_URI, else MLflow's own")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="pack-") as folder:
            archive = Path(options.bundle)
            if not archive.is_file():
                from pack_bundle import pack

                archive = pack(options.bundle, Path(folder), REPOSITORY)
            name, version = register(archive, options.tracking_uri)
    except BundleError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"models:/{name}/{version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
