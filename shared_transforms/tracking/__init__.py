"""What a training leaves behind while it runs: an MLflow run, figures of the maps, a progress bar."""

from shared_transforms.tracking.config import executing_config
from shared_transforms.tracking.figure import FigureHandler
from shared_transforms.tracking.progress import Progress
from shared_transforms.tracking.run import MLflowTracking

__all__ = ["FigureHandler", "MLflowTracking", "Progress", "executing_config"]
