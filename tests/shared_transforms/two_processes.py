"""A metric of the engine in two processes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

PROGRAM = """
import sys
import torch
import torch.distributed as dist
from ignite.engine import Engine
from shared_transforms import metrics


def work(rank, store, shares, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    engine = Engine(lambda engine, batch: batch)
    getattr(metrics, sys.argv[2])(*map(int, sys.argv[3:])).attach(engine, "metric")
    results[rank] = engine.run(shares[rank]).metrics["metric"]
    dist.destroy_process_group()


shares = torch.load(sys.argv[1] + "/shares.pt", weights_only=True)
results = torch.zeros(2, dtype=torch.float64).share_memory_()
torch.multiprocessing.start_processes(work, (sys.argv[1] + "/store", shares, results), 2, start_method="fork")
print(*results.tolist())
"""


def in_two_processes(folder: Path, shares: list[list[Any]], metric: str, *arguments: int) -> list[float]:
    """What each of two processes finds whose engines see the batches of their share."""
    torch.save(shares, folder / "shares.pt")
    command = [sys.executable, "-c", PROGRAM, str(folder), metric, *map(str, arguments)]
    root = str(Path(__file__).resolve().parents[2])
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return [float(value) for value in run.stdout.split()]
