"""The experiments: methods compared on simulated heads and measured data, each a function of a :class:`~.bench.Bench`.

``configs/experiments.json`` names them with their sizes; :func:`shared_transforms.experiments.run_experiments` runs one
or all.
"""
