"""What every site of a federated training runs, inside NVFlare: the bundle's own training, by MONAI's MonaiAlgo.

federation.json beside this file holds the bundle's folder, the configs, the epochs of a round, values of all sites and
of each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.fl.utils.exchange_object import ExchangeObject


def values_of(site: str, federation: dict[str, Any]) -> dict[str, Any]:
    """Values of train.json of one site: those of all, then its own.

    Raises:
        ValueError: the job names no such site; it would train on data that nobody chose, and be averaged in.
    """
    sites = federation["sites"]
    if site not in sites:
        raise ValueError(f"this client is {site!r}; the job was made for {', '.join(sorted(sites))}")
    return federation["values"] | sites[site]


def main() -> None:
    """Answer every round with the weights after some epochs on this site's data."""
    import nvflare.client as flare  # not before: whoever makes or tests a job need not have it

    here = Path(__file__).resolve().parent
    federation = json.loads((here / "federation.json").read_text("utf-8"))
    flare.init()
    site = flare.get_site_name()
    root = here / federation["bundle"]
    algo = MonaiAlgo(
        bundle_root=str(root),
        local_epochs=federation["local_epochs"],
        send_weight_diff=False,
        config_train_filename=[f"configs/{name}" for name in federation["configs"]],
        # The bundle's folder and "resume" are given here: MonaiAlgo sets the first after it has built everything once,
        # and without the second every round would be a run of its own in MLflow.
        train_kwargs={"output_dir": str(here.parent / "output")}
        | values_of(site, federation)
        | {"bundle_root": str(root), "resume": True},
        config_evaluate_filename=None,
    )
    algo.initialize({ExtraItems.CLIENT_NAME: site})
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        algo.train(ExchangeObject(weights=received.params))
        answer = algo.get_weights()
        steps = answer.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS]
        # Nothing but weights, and the number of steps, by which the server weighs them.
        flare.send(flare.FLModel(params=answer.weights, meta={"NUM_STEPS_CURRENT_ROUND": steps}))
    algo.finalize()


if __name__ == "__main__":
    main()
