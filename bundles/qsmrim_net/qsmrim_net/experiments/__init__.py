"""The experiments: methods compared on the scores of lesions that they were not trained on.

``configs/cross_validation.json`` makes the scores, ``configs/experiments.json`` reads them.
"""
