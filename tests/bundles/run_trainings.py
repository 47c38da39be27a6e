"""Several trainings one after the other in each process that torchrun starts: torch and MONAI are imported once.

Usage: torchrun ... run_trainings.py TRAININGS.json, a list of keyword arguments of MONAI's ConfigWorkflow.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from monai.bundle import ConfigWorkflow


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    destroy = dist.destroy_process_group
    # One group for all: groups made and destroyed in turn do not always find each other again.
    dist.init_process_group = dist.destroy_process_group = nothing  # type: ignore[assignment]
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        run = ConfigWorkflow(workflow_type="train", logging_file=False, **arguments)
        run.initialize()
        run.run()
        run.finalize()
    destroy()


def nothing(*_: Any) -> None:
    """Stands for making and destroying a group."""


main()
