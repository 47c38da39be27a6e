"""Perfusion maps from DSC-MRI by a spatiotemporal network (Cao et al.), and the deconvolutions it is compared with."""
