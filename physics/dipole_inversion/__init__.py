"""Dipole inversion: local field [ppm] to susceptibility [ppm], one calling convention for all methods."""

from physics.dipole_inversion.cosmos import cosmos
from physics.dipole_inversion.ilsqr import ilsqr
from physics.dipole_inversion.iteration import Iteration
from physics.dipole_inversion.kspace import l2_gradient, tikhonov, tkd
from physics.dipole_inversion.medi import medi
from physics.dipole_inversion.total_variation import tv_admm

__all__ = ["Iteration", "cosmos", "ilsqr", "l2_gradient", "medi", "tikhonov", "tkd", "tv_admm"]
