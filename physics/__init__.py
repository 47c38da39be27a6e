"""Differentiable, batched MR physics in torch: signal models, noise and estimators. No files, no networks, no MONAI."""
