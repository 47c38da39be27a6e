"""Magnetic field of a susceptibility distribution: dipole kernels, forward model, adjoint, closed forms."""

from physics.dipole.bodies import cuboid_field, cylinder_field, sphere_field
from physics.dipole.kernel import (
    check_geometry,
    check_kernel_kind,
    dipole_kernel,
    fast_shape,
    field_from_susceptibility,
    susceptibility_adjoint,
)

__all__ = [
    "check_geometry",
    "check_kernel_kind",
    "cuboid_field",
    "cylinder_field",
    "dipole_kernel",
    "fast_shape",
    "field_from_susceptibility",
    "sphere_field",
    "susceptibility_adjoint",
]
