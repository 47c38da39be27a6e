"""The MONAI side of qmri-bundles: checked reading and writing, simulation, losses, metrics, handlers, figures, report."""
