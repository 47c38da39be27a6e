"""Serve the packed bundles with MONAI Label, for 3D Slicer and other clients.

python scripts/monai_label.py setup                 the server's own environment, .venv-label
python scripts/monai_label.py app ZIP [ZIP ...]     an app folder from packed bundles, build/monai_label
python scripts/monai_label.py start STUDIES         the server, on a folder of NIfTI images with their sidecars

MONAI Label needs numpy 1.26 and other old packages: scripts/label_app/requirements.txt holds versions that ran
together. The app holds all that it serves: nothing is downloaded when it starts. The server asks nobody for a name and
lets its clients read what it can read: leave it on this machine (127.0.0.1), or behind a proxy with a password.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle_files import REPOSITORY, Bundle, BundleError, Fault, read_bundle
from bundle_zip import open_bundle

PARTS = Path(__file__).resolve().parent / "label_app"
REQUIREMENTS = PARTS / "requirements.txt"
ENVIRONMENT, APP = REPOSITORY / ".venv-label", REPOSITORY / "build" / "monai_label"
STAMP = ".requirements.sha256"
MARKER = ".qmri_label_app"  # a folder without it is not ours to replace


@dataclass(frozen=True)
class Variant:
    """A second model made of one bundle, since MONAI Label reads no overlays.

    Attributes:
        bundle: its name.
        overlays: configs of the bundle that change inference.json.
        values: further values of inference.json.
    """

    bundle: str
    overlays: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    "rim_relaxometry_t2": Variant(
        "rim_relaxometry",
        ("t2.json",),
        {
            "displayable_configs": {
                "map": ["T2map", "Amap", "T2stderr", "Astderr", "residual", "chi2", "mask"],
                "series_times_s": "",
            }
        },
    ),
    "qsmgan_local_field": Variant(
        "qsmgan",
        values={
            "input_kind": "local_field",
            "displayable_configs": {
                "map": ["Chimap", "localfield", "residual", "mask"],
                "field_unit": "",
                "field_strength_t": "",
            },
        },
    ),
}


def set_up(environment: Path) -> None:
    """Make the server's environment, or leave it as it is where it has these requirements.

    Raises:
        BundleError: no uv.
    """
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    stamp = environment / STAMP
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise BundleError(Fault("uv", "-", "is not there", "make setup, or pip install uv"))
    settings = dict(os.environ)
    if not settings.get("UV_FIND_LINKS"):  # as in the Makefile: a CPU wheel of torch, where one is offered
        links = settings.get("PIP_FIND_LINKS")
        settings |= (
            {"UV_FIND_LINKS": links} if links else {"UV_TORCH_BACKEND": settings.get("UV_TORCH_BACKEND", "auto")}
        )
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([uv, "venv", "--python", "3.11", str(environment)], check=True, env=settings)
    # In the repository uv knows what the build of pyradiomics forgets to ask for.
    install = [uv, "pip", "install", "--python", str(python), "-r", str(REQUIREMENTS)]
    subprocess.run(install, check=True, env=settings, cwd=REPOSITORY)
    stamp.write_text(wanted)


def build_app(zips: list[Path], app: Path) -> dict[str, str]:
    """Make the app folder anew: its main.py and, in ``model``, the bundles and their variants.

    Args:
        zips: packed bundles; of several versions of one bundle the newest is taken.
        app: the folder; one that an earlier call made is replaced.

    Returns:
        Version of each model, by its name.

    Raises:
        BundleError: a zip that is not safe or no packed bundle, two of one version, or a folder that is no app.
    """
    app = app.resolve()
    if app.exists() and not (app / MARKER).is_file() and (not app.is_dir() or any(app.iterdir())):
        raise BundleError(Fault(str(app), "-", "holds other things than an app", "name another folder: --app"))
    app.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=app.parent, prefix=".app-") as folder:
        made = Path(folder) / "app"
        (made / "model").mkdir(parents=True)
        (made / MARKER).touch()
        shutil.copy(PARTS / "main.py", made)
        versions: dict[str, str] = {}
        for path in zips:
            with open_bundle(path) as root:
                _add_newest(path, read_bundle(root), made / "model", versions)
        for name, variant in VARIANTS.items():
            if variant.bundle in versions:
                _add_variant(made / "model" / name, made / "model" / variant.bundle, variant)
                versions[name] = versions[variant.bundle]
        if app.exists():
            shutil.rmtree(app)
        made.rename(app)
    return dict(sorted(versions.items()))


def _add_newest(path: Path, bundle: Bundle, models: Path, versions: dict[str, str]) -> None:
    """Copy a packed bundle to ``models``, unless a newer version of it is in ``versions``, which is kept up."""
    if not bundle.is_packed:
        raise BundleError(Fault(str(path), "-", "is not self-contained", "make dist, then give its zip in dist/"))
    version, there = str(bundle.metadata.get("version")), versions.get(bundle.name)
    if version == there:
        raise BundleError(Fault(path.name, "-", f"is a second {bundle.name} {version}", "give one of them"))
    if there is None or _number(version) > _number(there):
        shutil.rmtree(models / bundle.name, ignore_errors=True)
        shutil.copytree(bundle.root, models / bundle.name)
        versions[bundle.name] = version


def _number(version: str) -> list[int]:
    """A version as what orders it: 0.10.0 is newer than 0.9.0."""
    return [int(part) for part in re.findall(r"\d+", version)]


def _add_variant(target: Path, bundle: Path, variant: Variant) -> None:
    shutil.copytree(bundle, target)
    configs = target / "configs"
    config = json.loads((configs / "inference.json").read_text("utf-8"))
    for overlay in variant.overlays:
        config |= json.loads((configs / overlay).read_text("utf-8"))
    config |= variant.values
    weights = re.search(r"/models/(\w+\.pt)", config["weights"])
    if weights is None:
        raise BundleError(Fault(f"{target.name}/configs/inference.json", "weights", "names no file", "pack it again"))
    if weights[1] != "model.pt":  # the one name that MONAI Label looks for
        shutil.copy(target / "models" / weights[1], target / "models" / "model.pt")
    (configs / "inference.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def server_command(environment: Path, app: Path, studies: Path, host: str, port: int, models: list[str]) -> list[str]:
    """The command that starts the server; to be run in the app folder.

    Raises:
        BundleError: no environment, no app, no such model, or no such folder.
    """
    python = environment.absolute() / "bin" / "python"
    there = sorted(path.name for path in app.glob("model/*") if path.is_dir())
    for path, missing, remedy in (
        (python, not python.exists(), "make the environment first: monai_label.py setup"),
        (app, not there, "build the app first: monai_label.py app dist/*.zip"),
        (studies, not studies.is_dir(), "name a folder of NIfTI images"),
    ):
        if missing:
            raise BundleError(Fault(str(path), "-", "is not there", remedy))
    if unknown := [name for name in models if name not in there]:
        raise BundleError(Fault(", ".join(unknown), "-", "is no model of the app", f"one of {', '.join(there)}"))
    options = ["--app", str(app.resolve()), "--studies", str(studies.resolve()), "--host", host, "--port", str(port)]
    chosen = ["--conf", "models", ",".join(models)] if models else []
    return [str(python), "-m", "monailabel.main", "start_server", *options, *chosen]


def main(arguments: list[str] | None = None) -> int:
    """Run one of the three commands; 1 if something is missing or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    setup = commands.add_parser("setup", help="make the server's environment")
    app = commands.add_parser("app", help="build the app folder from packed bundles")
    start = commands.add_parser("start", help="start the server")
    app.add_argument("zips", nargs="+", type=Path, metavar="ZIP", help="packed bundles: dist/*.zip; of each the newest")
    start.add_argument("studies", type=Path, metavar="STUDIES", help="folder of NIfTI images, sidecars beside them")
    start.add_argument("--host", default="127.0.0.1", help="address to listen at; default: this machine alone")
    start.add_argument("--port", type=int, default=8000, help="default: 8000")
    start.add_argument("--models", nargs="+", default=[], metavar="NAME", help="serve these alone; default: all")
    for command in (setup, start):
        command.add_argument(
            "--environment", type=Path, default=ENVIRONMENT, metavar="DIR", help="default: .venv-label"
        )
    for command in (app, start):
        command.add_argument("--app", type=Path, default=APP, metavar="DIR", help="default: build/monai_label")
    options = parser.parse_args(arguments)
    try:
        if options.command == "setup":
            set_up(options.environment)
            print(options.environment)
        elif options.command == "app":
            models = build_app(options.zips, options.app)
            print(f"{options.app}: {', '.join(f'{name} {version}' for name, version in models.items())}")
        else:
            place = (options.environment, options.app, options.studies, options.host, options.port, options.models)
            command_line = server_command(*place)
            os.chdir(options.app)
            os.execv(command_line[0], command_line)  # the server takes the place of this process, signals and all
    except BundleError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{error.cmd[0]} failed: see above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
