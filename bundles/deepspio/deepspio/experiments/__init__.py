"""The experiments: methods compared on simulated View Line images, each a function of a :class:`~.bench.Bench`.

``configs/experiments.json`` names them with their sizes, in the order of :data:`EXPERIMENTS`;
:func:`shared_transforms.experiments.run_experiments` runs one or all.
"""

EXPERIMENTS = (
    "simulated", "other_anatomy", "air_sphere", "phantoms", "noise", "timing", "attention", "saliency", "convergence",
)  # fmt: skip
