"""Several trainings one after the other in each process that torchrun starts: torch and MONAI are imported once.

Usage: torchrun ... run_trainings.py TRAININGS.json, a list of keyword arguments of MONAI's ConfigWorkflow.
"""

import json
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigWorkflow


def main() -> None:
    torch.set_num_threads(1)
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        run = ConfigWorkflow(workflow_type="train", logging_file=False, **arguments)
        run.initialize()
        run.run()
        run.finalize()


main()
