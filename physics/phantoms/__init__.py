"""Geometric phantoms with analytic shape, drawn apart from being rasterised."""

from physics.phantoms.bodies import Ellipsoids, Tubes, ellipsoid_fractions, paint, tube_fractions
from physics.phantoms.discs import disc_fractions, draw_discs
from physics.phantoms.draw import draw_ellipsoids, draw_trees, draw_tubes, random_rotations
from physics.phantoms.particles import (
    Cylinders,
    Figures,
    Metaballs,
    Particles,
    Tori,
    central_plane,
    draw_particles,
    empty,
    folded_planes,
    volume,
)

__all__ = [
    "Cylinders",
    "Ellipsoids",
    "Figures",
    "Metaballs",
    "Particles",
    "Tori",
    "Tubes",
    "central_plane",
    "disc_fractions",
    "draw_discs",
    "draw_ellipsoids",
    "draw_particles",
    "draw_trees",
    "draw_tubes",
    "ellipsoid_fractions",
    "empty",
    "folded_planes",
    "paint",
    "random_rotations",
    "tube_fractions",
    "volume",
]
