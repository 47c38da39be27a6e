"""Perfusion by dynamic susceptibility contrast: indicator dilution, signal, deconvolution and maps."""

from physics.perfusion.deconvolution import csvd_operator, deconvolve
from physics.perfusion.dilution import ArterialInput, gamma_variate, haematocrit_factor, tissue_concentration
from physics.perfusion.input_functions import (
    InputFunction,
    find_arterial_input,
    find_venous_output,
    marked_input,
)
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
from physics.perfusion.vessel_curve import unmix_tissue

__all__ = [
    "RESIDUES",
    "ArterialInput",
    "Frames",
    "InputFunction",
    "arterial_scale",
    "baseline_signal",
    "baseline_snr",
    "blood_flow",
    "blood_volume",
    "correct_leakage",
    "csvd_operator",
    "deconvolve",
    "delay_from_tmax",
    "find_arterial_input",
    "find_frames",
    "find_venous_output",
    "gamma_variate",
    "haematocrit_factor",
    "marked_input",
    "mean_transit_time",
    "perfusion_maps",
    "reconvolve",
    "relaxation_rate_change",
    "residue",
    "residue_spectrum",
    "signal_from_concentration",
    "time_to_maximum",
    "tissue_concentration",
    "unmix_tissue",
]
