"""How a volume goes through a network."""

from shared_transforms.inferers.autocast import AutocastInferer, bfloat16_device
from shared_transforms.inferers.slicewise import SlicewiseInferer
from shared_transforms.inferers.tiles import ContextTileInferer

__all__ = ["AutocastInferer", "ContextTileInferer", "SlicewiseInferer", "bfloat16_device"]
