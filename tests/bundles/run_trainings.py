"""Several trainings one after the other in each process that torchrun starts: torch and MONAI are imported once.

Usage: torchrun ... run_trainings.py TRAININGS.json, a list of keyword arguments of MONAI's ConfigWorkflow.
"""

import json
import os
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigWorkflow


def main() -> None:
    torch.set_num_threads(1)
    for count, arguments in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        # A part of torchrun's store for each: the addresses of the group before would be found otherwise.
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(count)
        run = ConfigWorkflow(workflow_type="train", logging_file=False, **arguments)
        run.initialize()
        run.run()
        run.finalize()


main()
