"""Dipole inversion: local field [ppm] to susceptibility [ppm], one calling convention for all methods."""

from physics.dipole_inversion.iteration import Iteration

__all__ = ["Iteration"]
