"""The experiments: methods compared on held-out simulated examinations, each a function of a :class:`~.bench.Bench`.

``configs/experiments.json`` names them with their sizes, in the order of :data:`EXPERIMENTS`;
:func:`shared_transforms.experiments.run_experiments` runs one or all.
"""

EXPERIMENTS = ("calibration", "method_tables", "noise_sweep", "aif", "osipi", "timing", "studies", "realism")
