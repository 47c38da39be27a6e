"""The experiments of the paper (sections 5 and 6), each a function of a :class:`~.bench.Bench`.

``configs/experiments.json`` names them with their sizes; :func:`shared_transforms.experiments.run_experiments` runs one
or all.
"""
