"""Geometric phantoms with analytic shape, drawn apart from being rasterised."""

from physics.phantoms.bodies import Ellipsoids, Tubes, ellipsoid_fractions, paint, tube_fractions
from physics.phantoms.discs import disc_fractions, draw_discs
from physics.phantoms.draw import draw_ellipsoids, draw_trees, draw_tubes, random_rotations

__all__ = [
    "Ellipsoids",
    "Tubes",
    "disc_fractions",
    "draw_discs",
    "draw_ellipsoids",
    "draw_trees",
    "draw_tubes",
    "ellipsoid_fractions",
    "paint",
    "random_rotations",
    "tube_fractions",
]
