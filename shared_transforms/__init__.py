"""The MONAI side of qmri-bundles: checked reading and writing, simulation, metrics, handlers, figures, report."""
