"""Perfusion by dynamic susceptibility contrast: indicator dilution, signal, deconvolution and maps."""

from physics.perfusion.deconvolution import csvd_operator, deconvolve
from physics.perfusion.dilution import ArterialInput, gamma_variate, haematocrit_factor, tissue_concentration
from physics.perfusion.leakage import correct_leakage
from physics.perfusion.maps import (
    arterial_scale,
    blood_flow,
    blood_volume,
    mean_transit_time,
    perfusion_maps,
    time_to_maximum,
)
from physics.perfusion.reconvolution import delay_from_tmax, reconvolve
from physics.perfusion.residues import RESIDUES, residue, residue_spectrum
from physics.perfusion.signal import (
    Frames,
    baseline_signal,
    baseline_snr,
    find_frames,
    relaxation_rate_change,
    signal_from_concentration,
)

__all__ = [
    "delay_from_tmax",
    "reconvolve",
    "arterial_scale",
    "blood_flow",
    "blood_volume",
    "csvd_operator",
    "deconvolve",
    "mean_transit_time",
    "perfusion_maps",
    "time_to_maximum",
    "signal_from_concentration",
    "relaxation_rate_change",
    "find_frames",
    "correct_leakage",
    "baseline_snr",
    "baseline_signal",
    "Frames",
    "RESIDUES",
    "ArterialInput",
    "gamma_variate",
    "haematocrit_factor",
    "residue",
    "residue_spectrum",
    "tissue_concentration",
]
