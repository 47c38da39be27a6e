"""Paramagnetic rim lesions of multiple sclerosis on QSM by a two-branch network with oversampling (paper 003)."""
