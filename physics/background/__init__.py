"""Background field removal: of the field in an organ, the part that has its sources in the organ.

One convention: ``method(field [ppm] [..., X, Y, Z], mask, voxel_size, ...) -> (local field [ppm], mask of validity)``.
The local field is zero outside the mask of validity, which the methods shrink by the voxels they cannot answer for.
"""

from physics.background.boundary_value import lbv
from physics.background.projection import pdf
from physics.background.spherical_mean import smv_kernel, vsharp

__all__ = ["lbv", "pdf", "smv_kernel", "vsharp"]
