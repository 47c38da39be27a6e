"""What a training leaves behind while it runs: an MLflow run, figures of the maps, its speed, a progress bar."""

from shared_transforms.tracking.config import executing_config
from shared_transforms.tracking.figure import FigureHandler
from shared_transforms.tracking.progress import Progress
from shared_transforms.tracking.run import MLflowTracking
from shared_transforms.tracking.throughput import Throughput

__all__ = ["FigureHandler", "MLflowTracking", "Progress", "Throughput", "executing_config"]
