"""Perfusion by dynamic susceptibility contrast: indicator dilution, signal, deconvolution and maps."""

from physics.perfusion.dilution import ArterialInput, gamma_variate, haematocrit_factor, tissue_concentration
from physics.perfusion.residues import RESIDUES, residue, residue_spectrum

__all__ = [
    "RESIDUES",
    "ArterialInput",
    "gamma_variate",
    "haematocrit_factor",
    "residue",
    "residue_spectrum",
    "tissue_concentration",
]
