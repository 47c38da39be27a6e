"""Concentration of saturated iron particles from View Line images by a wavelet-decoder network (paper 000)."""
