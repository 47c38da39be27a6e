"""Make a job of federated training (NVFlare, FedAvg) from a packed bundle: sites train, weights alone travel.

python scripts/federated.py dist/NAME_vX.Y.Z.zip JOB --site site-1 anatomy#folder=/data/a --site site-2 seed=1
nvflare simulator JOB --workspace WORK --clients site-1,site-2 --threads 2

The training starts from the weights that train.json names (--weights for others) and every round gives each site the
mean of all. --extract takes the weights out of the result, WORK/server/simulate_job/app_server/FL_global_model.pt.
docs/federated.md says more.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle_files import BundleError, Fault, read_bundle
from bundle_zip import open_bundle

if TYPE_CHECKING:
    from torch import Tensor

SITE_SCRIPT = Path(__file__).resolve().parent / "federation" / "train_site.py"
WEIGHTS = "weights.pt"
STAYS = ("models", "docs/results", "docs/figures", "output")  # of the bundle: sites need none of it


def make_job(
    bundle: Path,
    job: Path,
    sites: dict[str, dict[str, Any]],
    rounds: int,
    local_epochs: int,
    overlays: list[str],
    values: dict[str, Any],
    weights: Path | None = None,
) -> None:
    """Write the folder of an NVFlare job.

    Args:
        bundle: a packed bundle, zip or folder.
        job: folder to make; refused where it exists.
        sites: values of train.json of each site, by its name.
        rounds: how many times the weights are averaged.
        local_epochs: epochs of a site in each round.
        overlays: further configs of the bundle, such as t2.json.
        values: values of train.json of all sites.
        weights: a state_dict to start from; None takes what the configs name.

    Raises:
        BundleError: a bundle that is not packed, something missing, a value that the configs do not have, or weights of
            another network.
    """
    if len(sites) < 2 or rounds < 1 or local_epochs < 1:
        problem = f"is {len(sites)} site(s), {rounds} round(s), {local_epochs} epoch(s)"
        raise BundleError(Fault("command line", "-", problem, "give at least two --site, a round and an epoch"))
    if job.exists():
        raise BundleError(Fault(str(job), "-", "exists", "name another folder, or delete it"))
    values = {"epochs": rounds * local_epochs} | values  # which the learning rate's schedule counts
    job.parent.mkdir(parents=True, exist_ok=True)
    with open_bundle(bundle) as root, tempfile.TemporaryDirectory(dir=job.parent, prefix=".job-") as folder:
        if not read_bundle(root).is_packed:  # it would need the rest of the repository at a site
            raise BundleError(Fault(str(bundle), "-", "is not self-contained", "make dist, then give its zip in dist/"))
        configs = ["train.json", *overlays]
        check_values(root, configs, [values, *sites.values()])
        made = Path(folder) / "job"
        custom = made / "app" / "custom"
        shutil.copytree(
            root,
            custom / root.name,
            ignore=lambda below, names: {n for n in names if (Path(below) / n).relative_to(root).as_posix() in STAYS},
        )
        shutil.copy(SITE_SCRIPT, custom / SITE_SCRIPT.name)
        start = first_weights(root, configs, values, weights)
        federation = {
            "bundle": root.name, "configs": configs, "local_epochs": local_epochs, "values": values, "sites": sites,
        }  # fmt: skip
        write_json(custom / "federation.json", federation)
        write_json(made / "meta.json", meta(root.name, len(sites)))
        write_json(made / "app" / "config" / "config_fed_server.json", server(len(sites), rounds))
        write_json(made / "app" / "config" / "config_fed_client.json", CLIENT)
        save(start, custom / WEIGHTS)
        made.rename(job)


def meta(name: str, sites: int) -> dict[str, Any]:
    """NVFlare's meta.json: one app for the server and all sites, which starts when all are there."""
    return {"name": name, "resource_spec": {}, "min_clients": sites, "deploy_map": {"app": ["@ALL"]}}


def server(sites: int, rounds: int) -> dict[str, Any]:
    """The server's config: it reads a file of tensors, averages, and writes one; no code of the bundle runs there."""
    controller = {"num_clients": sites, "num_rounds": rounds, "persistor_id": "persistor"}
    persistor = {"source_ckpt_file_full_name": WEIGHTS, "load_device": "cpu"}
    return {
        "format_version": 2,
        "workflows": [
            {"id": "controller", "path": "nvflare.app_common.workflows.fedavg.FedAvg", "args": controller},
        ],
        "components": [
            {
                "id": "persistor",
                "path": "nvflare.app_opt.pt.file_model_persistor.PTFileModelPersistor",
                "args": persistor,
            }
        ],
        "task_data_filters": [],
        "task_result_filters": [],
    }


CLIENT: dict[str, Any] = {
    "format_version": 2,
    "executors": [
        {
            "tasks": ["*"],
            "executor": {
                "path": "nvflare.app_common.executors.client_api_executor.ClientAPIExecutor",
                "args": {
                    "execution_mode": "in_process",
                    "task_script_path": SITE_SCRIPT.name,
                    "params_exchange_format": "pytorch",
                },
            },
        }
    ],
    "components": [],
    "task_data_filters": [],
    "task_result_filters": [],
}


def check_values(root: Path, configs: list[str], values: list[dict[str, Any]]) -> None:
    """Refuse overlays and values that the bundle's configs do not know: MONAI takes a misspelt one in silence."""
    from shared_transforms.errors import QMRIError
    from shared_transforms.overrides import check_keys

    files = [root / "configs" / name for name in configs]
    for file in files:
        if not file.is_file():
            raise BundleError(Fault(f"configs/{file.name}", "-", "is not there", "name a config of the bundle"))
    try:
        check_keys([key for some in values for key in some], files)
    except QMRIError as error:
        problem = f"{error.found}; expected {error.expected}"
        raise BundleError(Fault("configs/train.json", error.field or "-", problem, error.remedy)) from error


def first_weights(
    root: Path, configs: list[str], values: dict[str, Any], weights: Path | None = None
) -> dict[str, Tensor]:
    """State_dict that all sites start from: of an ensemble the first member; shipped half precision as float32.

    Raises:
        BundleError: weights that are missing or no weights of the network that these configs train.
    """
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([str(root / "configs" / name) for name in configs])
    parser.update({"bundle_root": str(root)} | values)
    if weights is None:
        named = re.search(r"/models/(\w+\.pt)", str(parser["weights"]))
        weights = root / "models" / (named[1] if named else "model.pt")
    sys.path.insert(0, str(root))
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        first = {name.removeprefix("members.0."): value for name, value in state.items() if "members." in name[:8]}
        state = {k: v for k, v in first.items() if not k.startswith("members.")} if first else state
        state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        network = parser.get_parsed_content("network_def")
        network.load_state_dict(state)
    except Exception as error:  # of the network's code, of torch's reader, or of what does not fit
        problem = f"no weights of this training's network: {str(error).splitlines()[0]}"
        raise BundleError(Fault(str(weights), "-", problem, "name weights of it by --weights")) from error
    finally:
        sys.path.remove(str(root))
    return dict(network.state_dict())


def extract(result: Path, target: Path) -> None:
    """Write the weights of a federated training, as the server left them, as a file that the bundle loads."""
    import torch

    try:
        state = torch.load(result, map_location="cpu", weights_only=True)["model"]
    except Exception as error:
        raise BundleError(
            Fault(str(result), "-", f"is no result of a federated training: {error}", "name FL_global_model.pt")
        ) from error
    save({name: torch.as_tensor(value) for name, value in state.items()}, target)


def save(state: dict[str, Tensor], target: Path) -> None:
    """Write a state_dict, whole or not at all."""
    import torch

    from shared_transforms.atomic import atomic_write

    with atomic_write(target) as file:
        torch.save(state, file)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a config of the job, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def parse_values(pairs: list[str]) -> dict[str, Any]:
    """KEY=VALUE to a dictionary; values are JSON, and text where they are none.

    Raises:
        BundleError: something without an equals sign.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise BundleError(Fault("command line", pair, "is no KEY=VALUE", "write it as seed=1"))
        try:
            values[key] = json.loads(text)
        except json.JSONDecodeError:
            values[key] = text
    return values


def parse_sites(given: list[list[str]]) -> dict[str, dict[str, Any]]:
    """NAME KEY=VALUE ... of each site to its values, by its name.

    Raises:
        BundleError: a site that is named twice, or something without an equals sign.
    """
    sites: dict[str, dict[str, Any]] = {}
    for name, *pairs in given:
        if name in sites:
            raise BundleError(Fault("command line", f"--site {name}", "stands twice", "give all its values in one"))
        sites[name] = parse_values(pairs)
    return sites


def main(arguments: list[str] | None = None) -> int:
    """Make a job, or take the weights out of a result; 1 if something is missing or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="ZIP", help="packed bundle; with --extract FL_global_model.pt")
    parser.add_argument("target", type=Path, metavar="JOB", help="folder to make; with --extract the file of weights")
    parser.add_argument("--extract", action="store_true", help="take the weights out of a result")
    parser.add_argument(
        "--site", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"),
        help="a site, and values of train.json for it alone; once for each",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=10, help="default: 10")
    parser.add_argument("--local_epochs", type=int, default=1, help="epochs of a site in a round; default: 1")
    parser.add_argument("--overlay", nargs="+", default=[], metavar="FILE", help="further configs, such as t2.json")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="values of train.json for all sites")
    parser.add_argument("--weights", type=Path, help="state_dict to start from; default: those of train.json")
    options = parser.parse_args(arguments)
    try:
        if options.extract:
            extract(options.source, options.target)
        else:
            sites = parse_sites(options.site)
            plan = (sites, options.rounds, options.local_epochs, options.overlay, parse_values(options.set))
            make_job(options.source, options.target, *plan, options.weights)
    except BundleError as error:
        print(error, file=sys.stderr)
        return 1
    print(options.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
