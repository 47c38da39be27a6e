r"""
Susceptibility from raw phase by ``qsmgan``
===========================================

Magnitude and wrapped phase of five echoes of a simulated head, with air below its front and an imperfect shim: field
fit, unwrapping, background removal and the network, by one command.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import monai.bundle
import nibabel
import numpy as np

import physics

repository = Path(physics.__file__).parents[1]
sys.path[:0] = [str(repository / "scripts"), str(repository / "bundles" / "qsmgan")]

from demos import qsmgan as demo

# %%
# A scan
# ------
# Half of the demonstration's size, so that it takes seconds.

folder = repository / "build" / "gallery" / "qsmgan"
scan = demo.simulate(scale=0.5)
images = demo.write_scan(scan, folder / "scans")
print(f"{len(images)} files of {scan.truth.shape} voxels of 1 mm:", *[path.name for path in images[:2]], "...")

# %%
# Inference
# ---------

bundle = repository / "bundles" / "qsmgan"
monai.bundle.run(
    bundle_root=str(bundle),
    config_file=str(bundle / "configs" / "inference.json"),
    dataset_dir=str(folder / "scans"),
    output_dir=str(folder / "maps"),
)

# %%
# From phase to susceptibility
# ----------------------------


def read(name):
    """A map of the subject."""
    return nibabel.load(folder / "maps" / "sub-demo" / f"sub-demo_{name}.nii.gz").get_fdata()


estimate, field, mask = read("Chimap"), read("localfield"), read("mask") > 0
truth = scan.truth - scan.truth[mask].mean()
estimate = estimate - estimate[mask].mean()
cut = int(np.argmax((mask * np.abs(truth)).sum((0, 1))))  # the slice with most iron
shades = {"raw phase, last echo": (scan.phase[-1], np.pi, "phase [rad]"), "local field": (field, 0.05, "field [ppm]"),
          "estimate": (estimate, 0.15, "susceptibility [ppm]"), "truth": (truth, 0.15, "susceptibility [ppm]"),
          "error": (estimate - truth, 0.1, "error [ppm]")}  # fmt: skip
figure, axes = plt.subplots(1, 5, figsize=(15, 3.8), layout="constrained")
for panel, (title, (volume, top, label)) in zip(axes, shades.items(), strict=True):
    shown = np.where(mask | (title.startswith("raw")), volume, np.nan)[..., cut]
    colours = "RdBu_r" if title == "error" else "gray"
    drawn = panel.imshow(np.rot90(shown), cmap=colours, vmin=-top, vmax=top)
    panel.set_title(title)
    panel.set_axis_off()
    figure.colorbar(drawn, ax=panel, label=label, orientation="horizontal", ticks=[-round(top, 2), 0, round(top, 2)])

rows, error = demo.compare(scan, folder / "maps" / "sub-demo")
print(demo.table(rows, error))
plt.show()
