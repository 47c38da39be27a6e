"""Susceptibility maps from gradient-echo phase by a generative adversarial network (Chen et al. 2020)."""
