"""Ship trained weights: copy them into a bundle and write down, beside the results, where they come from."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bundle_files import REPOSITORY, Bundle, read_bundle
from bundle_rules import trainings
from documents import documents_of

sys.path.insert(0, str(REPOSITORY))

RUN_FILE = "mlflow_run_id.txt"  # written by shared_transforms.tracking
ANOTHER = ", then another member by "  # between the recipes of an ensemble
LOG_TIME = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)")
PATHS = ("weights", "start_weights", "resume", "tracking_uri", "cohort_dir", "cache_dir")  # places of a machine


class RecordError(Exception):
    """The run cannot be registered; the message says what is missing and what to do."""


@dataclass(frozen=True)
class Run:
    """What is known of a training.

    Attributes:
        seed: its seed.
        commit: commit of the sources, "-dirty" appended where they differed from it.
        hardware: the machine in words.
        seconds: wall time; None where nothing tells it.
        timed: number of epochs it is the time of; None for all.
        values: plain values at the top of the executed configuration.
        best: lowest validation metric by name.
        recipe_sha256: the tag by which MLflow finds all runs of the recipe; None for a run without a record.
    """

    seed: int
    commit: str
    hardware: str
    seconds: float | None
    timed: int | None
    values: dict[str, Any]
    best: dict[str, float]
    recipe_sha256: str | None


def register(
    run_dir: Path,
    bundle_dir: Path,
    name: str,
    given: Mapping[str, Any] | None = None,
    epoch: int | None = None,
    after: Sequence[Path] = (),
    members: Sequence[Path] = (),
    buffers: Path | None = None,
    half: bool = False,
) -> Path:
    """Copy the best weights of a run, or those of an epoch, to ``models/<name>`` and write their record.

    The record is ``docs/results/training_<stem>.json``. Several runs make one file for an ensemble, a network whose
    ``members`` are theirs.

    Args:
        run_dir: output_dir of the training: ``checkpoints/model.pt``, ``checkpoints/checkpoint_epoch=N.pt``, and the
            record of MLflow or else a log.
        bundle_dir: the bundle's folder.
        name: name of the weights, the one a config of the bundle loads.
        given: ``seed``, ``commit``, ``hardware`` and ``log`` for a run without a record; they win over it.
        epoch: epoch whose weights are shipped, one of the checkpoints kept; None for the best.
        after: output_dirs of the trainings before, in order: each but the first went on from the best weights of the
            one before by ``finetune.json``, and so did this one.
        members: output_dirs of the trainings of an ensemble's further members, in order.
        buffers: file with the tensors that the ensemble has beside its members, such as its calibration.
        half: whether an ensemble's matrices are kept in half precision, for a file half as large.

    Returns:
        The record.

    Raises:
        RecordError: if weights, seed, commit or hardware are unknown, or no config loads such a file.
    """
    from shared_transforms.atomic import atomic_write

    bundle, special = read_bundle(bundle_dir), documents_of(bundle_dir.name)
    overlays = network_configs(bundle, name)
    training = training_configs(bundle, name, overlays)
    source = "model.pt" if epoch is None else f"checkpoint_epoch={epoch}.pt"
    content, count = _weights(run_dir / "checkpoints" / source, special.dispensable)
    if members or buffers:
        files = [folder / "checkpoints" / source for folder in (run_dir, *members)]
        content, count = _ensemble(files, buffers, special.dispensable, half)
    epochs, steps = _progress(run_dir / "checkpoints")
    known = {key: value for key, value in (given or {}).items() if value is not None}
    earlier = []
    for folder in after:
        earlier.append(_unshipped(folder, bundle, training, known))
        training = [*dict.fromkeys([*training, "finetune.json"])]
    run = _run(run_dir, known, _plain_values(bundle, training))
    record = {
        "weights": f"models/{name}",
        "sha256": hashlib.sha256(content).hexdigest(),
        "network": overlays,
        "number_of_weights": count,
        "seed": run.seed,
        "commit": run.commit,
        "recipe": recipe(bundle, training, run.values),
        "hardware": run.hardware,
        "seconds": run.seconds,
        "epochs_timed": run.timed or epochs,
        "epochs": epochs,
        "shipped_epoch": "best" if epoch is None else epoch,
        "steps": steps,
        "best_validation": run.best,
        "values": run.values,
        "recipe_sha256": run.recipe_sha256,
    }
    if earlier:
        recipes = [one["recipe"] for one in (*earlier, record)]
        record |= {"after": earlier, "recipe": ", then from its weights ".join(map(str, recipes))}
    if members:
        record["half_precision"] = half
        others = [_unshipped(folder, bundle, training, known, source) for folder in members]
        recipes = [one["recipe"] for one in (record, *others)]
        record |= {"members": others, "recipe": ANOTHER.join(map(str, recipes))}
    target = bundle_dir / "docs" / "results" / f"training_{Path(name).stem}.json"
    for path, data in (
        (bundle_dir / "models" / name, content),
        (target, (json.dumps(record, indent=1) + "\n").encode()),
    ):
        with atomic_write(path) as file:
            file.write(data)
    return target


def _unshipped(
    run_dir: Path, bundle: Bundle, training: list[str], given: Mapping[str, Any], source: str = "model.pt"
) -> dict[str, Any]:
    """What is known of a training whose weights are no file of their own: gone on from, or a member of an ensemble."""
    content, _ = _weights(run_dir / "checkpoints" / source, ())
    epochs, steps = _progress(run_dir / "checkpoints")
    run = _run(run_dir, given, _plain_values(bundle, training))
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "seed": run.seed,
        "commit": run.commit,
        "recipe": recipe(bundle, training, run.values),
        "hardware": run.hardware,
        "seconds": run.seconds,
        "epochs": epochs,
        "steps": steps,
        "best_validation": run.best,
    }


def _ensemble(
    files: Sequence[Path], buffers: Path | None, dispensable: tuple[str, ...], half: bool
) -> tuple[bytes, int]:
    """One file of the weights of all members and what the ensemble has beside them; and how many numbers it holds.

    In half precision matrices and kernels are rounded; vectors are not: variances and scales may not fit.
    """
    import torch

    kept: dict[str, Any] = {}
    for number, path in enumerate(files):
        state = torch.load(io.BytesIO(_weights(path, dispensable)[0]), map_location="cpu", weights_only=True)
        rounded = {key: value.half() if half and value.ndim > 1 else value for key, value in state.items()}
        kept |= {f"members.{number}.{key}": value for key, value in rounded.items()}
    if buffers is not None:
        kept |= torch.load(buffers, map_location="cpu", weights_only=True)
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    return buffer.getvalue(), sum(value.numel() for value in kept.values())


def network_configs(bundle: Bundle, name: str) -> list[str]:
    """The configs, base first, whose network takes ``models/<name>``.

    That is ``inference.json`` or an overlay on it if its ``weights`` is that file, else a training of its own.

    Raises:
        RecordError: if there is none.
    """
    loading = {file for file, config in bundle.runnable.items() if _loads(config, name)}
    overlays = loading - {*trainings(bundle), "evaluate.json", "experiments.json"}
    if "inference.json" in overlays:
        return ["inference.json"]
    if overlays:
        return ["inference.json", min(overlays)]
    own = [file for file in trainings(bundle) if file in loading]
    if not own:
        there = {str(config["weights"]) for config in bundle.runnable.values() if "weights" in config}
        raise RecordError(f"no config loads models/{name}; they load {', '.join(sorted(there)) or 'none'}")
    return own[:1]


def training_configs(bundle: Bundle, name: str, networks: list[str]) -> list[str]:
    """The configs that train ``models/<name>``: the training it is the ``weights`` of, or train.json with overlays.

    Args:
        bundle: the bundle.
        name: of the weights.
        networks: what :func:`network_configs` gives.
    """
    own = [file for file in trainings(bundle) if _loads(bundle.configs[file], name)]
    return own[:1] or ["train.json", *networks[1:]]


def _loads(config: Mapping[str, Any], name: str) -> bool:
    return str(config.get("weights", "")).endswith(f"/models/{name}'")


def recipe(bundle: Bundle, training: list[str], values: Mapping[str, Any]) -> str:
    """The command that trains these weights, from the bundle's folder, with what was changed on the command line."""
    files = [f"configs/{name}" for name in training]
    command = ["python", "-m", "monai.bundle", "run", "--bundle_root", "."]
    command += ["--config_file", files[0] if len(files) == 1 else json.dumps(files)]
    keys = {key for name in training for key in bundle.configs.get(name, {})}
    committed = _plain_values(bundle, training)
    for key, value in values.items():
        if key in keys and committed.get(key) != value:
            command += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(command)


def _plain_values(bundle: Bundle, names: list[str]) -> dict[str, Any]:
    from shared_transforms.tracking.config import user_values

    merged: dict[str, Any] = {}
    for name in names:
        merged |= bundle.configs.get(name, {})
    return {key: value for key, value in user_values(merged).items() if key not in PATHS}


def _weights(path: Path, dispensable: tuple[str, ...]) -> tuple[bytes, int]:
    """The file as it is, or saved again without what networks no longer keep; and how many numbers it holds."""
    import torch

    if not path.is_file():
        raise RecordError(f"{path} is not there: give the output_dir of a training")
    content = path.read_bytes()
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if "network" in state:  # a checkpoint of the whole training
        content, state = b"", state["network"]
    kept = {key: value for key, value in state.items() if not key.startswith(dispensable)}
    count = sum(value.numel() for value in kept.values())
    if content and len(kept) == len(state):
        return content, count
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    return buffer.getvalue(), count


def _progress(folder: Path) -> tuple[int | None, int | None]:
    """Epochs and steps of the last checkpoint."""
    import torch

    from shared_transforms.checkpoint import latest_checkpoint

    path = latest_checkpoint(folder)
    if path is None:
        return None, None
    progress = torch.load(path, map_location="cpu", weights_only=True).get("progress", {})
    return progress.get("epoch"), progress.get("iteration")


def _run(run_dir: Path, given: Mapping[str, Any], defaults: dict[str, Any]) -> Run:
    recorded = _from_mlflow(run_dir, defaults) or _from_log(run_dir, given.get("log"), defaults)
    found = recorded | {key: value for key, value in given.items() if key != "log"}
    missing = [key for key in ("seed", "commit", "hardware") if found.get(key) in (None, "")]
    if missing:
        options = ", ".join(f"--{key}" for key in missing)
        raise RecordError(f"{run_dir} does not tell {', '.join(missing)}: give {options}")
    known: dict[str, Any] = {key: found.get(key) for key in ("seconds", "timed", "values", "best", "recipe_sha256")}
    return Run(seed=int(found["seed"]), commit=str(found["commit"]), hardware=str(found["hardware"]), **known)


def _from_mlflow(run_dir: Path, defaults: dict[str, Any]) -> dict[str, Any] | None:
    """What the tracking handler recorded in ``mlruns.db``; None where it did not."""
    if not (run_dir / "mlruns.db").is_file() or not (run_dir / RUN_FILE).is_file():
        return None
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{(run_dir / 'mlruns.db').resolve()}")
    run = client.get_run((run_dir / RUN_FILE).read_text().strip())
    parameters, metrics = run.data.params, run.data.metrics
    recorded = {key.removeprefix("recipe."): text for key, text in parameters.items() if key.startswith("recipe.")}
    values = defaults | {key: _as_recorded(text, defaults.get(key)) for key, text in recorded.items()}
    # The epochs' own times leave out the pause before a run was resumed.
    epochs = [item.value for item in client.get_metric_history(run.info.run_id, "epoch_seconds")]
    from shared_transforms.tracking.config import user_values

    return {
        "seed": _as_recorded(parameters.get("seed"), None),
        "commit": parameters.get("commit"),
        "hardware": _machine({key.partition(".")[2]: value for key, value in parameters.items() if "hardware." in key}),
        "seconds": sum(epochs) or None,
        "timed": len(epochs),
        "values": {key: value for key, value in user_values(values).items() if key not in PATHS},
        "best": {key.removeprefix("best_"): value for key, value in metrics.items() if key.startswith("best_")},
        "recipe_sha256": run.data.tags.get("recipe_sha256"),
    }


def _as_recorded(text: str | None, default: Any) -> Any:
    """A value from the text that MLflow keeps; the default where it keeps none, or cut a list short."""
    if text is None:
        return default
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text if isinstance(default, str) or default is None else default


def _machine(hardware: Mapping[str, Any]) -> str:
    gpu = hardware.get("gpu")
    if gpu not in (None, "None"):
        return str(gpu)
    return f"{hardware['cpu']}, {hardware['threads']} thread(s)" if "cpu" in hardware else ""


def _from_log(run_dir: Path, log: Path | None, defaults: dict[str, Any]) -> dict[str, Any]:
    """Wall time and best metric from MONAI's log; seed from the configuration."""
    path = log or run_dir.with_suffix(".log")
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []
    stamps = [datetime.fromisoformat(m[1]).replace(tzinfo=UTC) for line in lines if (m := LOG_TIME.match(line))]
    best = [m for line in lines if (m := re.search(r"Key metric: (\S+) best value: ([-\d.e]+)", line))]
    return {
        "seed": defaults.get("seed"),
        "seconds": (stamps[-1] - stamps[0]).total_seconds() if stamps else None,
        "timed": None,
        "values": defaults,
        "best": {best[-1][1]: float(best[-1][2])} if best else {},
    }
