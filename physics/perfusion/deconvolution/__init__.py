"""Deconvolution of tissue by the arterial curve: residue function [1/s], one calling convention for all methods."""

from physics.perfusion.deconvolution.circulant import csvd_operator, oscillation
from physics.perfusion.deconvolution.methods import CIRCULANT, METHODS, deconvolve

__all__ = ["CIRCULANT", "METHODS", "csvd_operator", "deconvolve", "oscillation"]
