"""Inference of a bundle over a BIDS data set of any size: parallel, resumable, one failed subject at a time.

``run.BatchInference`` is what the config of a bundle names. Nothing is imported here: ``processes`` alone starts fast.
"""
