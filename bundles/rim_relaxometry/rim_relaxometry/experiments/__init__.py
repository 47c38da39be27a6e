"""The experiments of the paper (sections 5 and 6), each a function of a :class:`~.bench.Bench`.

``configs/experiments.json`` names them with their sizes; :func:`~.runner.run_experiments` runs one or all.
"""
