"""How a volume goes through a network."""

from shared_transforms.inferers.autocast import AutocastInferer, bfloat16_device
from shared_transforms.inferers.slicewise import SlicewiseInferer

__all__ = ["AutocastInferer", "SlicewiseInferer", "bfloat16_device"]
