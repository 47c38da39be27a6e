"""What a training leaves behind while it runs: an MLflow run, figures of the maps, its speed, a progress bar."""

import os

# MLflow reads these when it is used, not when it is imported. What a user has set himself stays.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else every training tells mlflow.org that it runs
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # else a server that is away holds a training for minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # [s]

from shared_transforms.tracking.config import executing_config, recipe_sha256
from shared_transforms.tracking.figure import FigureHandler
from shared_transforms.tracking.progress import Progress
from shared_transforms.tracking.run import MLflowTracking
from shared_transforms.tracking.throughput import Throughput

__all__ = ["FigureHandler", "MLflowTracking", "Progress", "Throughput", "executing_config", "recipe_sha256"]
