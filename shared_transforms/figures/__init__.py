"""Figures of parameter maps, with units.

Every function returns a matplotlib Figure made without pyplot: no window, no global state, safe in any thread. Colour
maps are perceptually uniform; errors are diverging and symmetric about zero. Images are shown in radiological
orientation (the patient's right on the left) with the aspect of the voxels.
"""

from shared_transforms.figures.charts import box_plot_over_snr, histogram
from shared_transforms.figures.panels import comparison_panel, figure_to_png_bytes, map_panel
from shared_transforms.figures.planes import plane_panel
from shared_transforms.figures.slices import Slice, central_slices

__all__ = [
    "Slice",
    "box_plot_over_snr",
    "central_slices",
    "comparison_panel",
    "figure_to_png_bytes",
    "histogram",
    "map_panel",
    "plane_panel",
]
