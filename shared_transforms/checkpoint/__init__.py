"""Checkpoints that survive a kill, and training that resumes bit for bit.

MONAI's CheckpointSaver rewrites files in place and keeps the highest key metric. Here every file is written beside
its name and renamed, everything that decides the next iteration is saved, and the best model is the one with the lowest
error.
"""

from shared_transforms.checkpoint.loading import latest_checkpoint, load_checkpoint
from shared_transforms.checkpoint.saver import AtomicCheckpointSaver, AtomicDiskSaver

__all__ = ["AtomicCheckpointSaver", "AtomicDiskSaver", "latest_checkpoint", "load_checkpoint"]
