r"""
T1 map of a head by ``rim_relaxometry``
=======================================

An inversion recovery of a simulated head, written as a scanner's converter writes it, is mapped with the shipped
weights by the command that a user gives: ``python -m monai.bundle run``.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import monai.bundle
import nibabel
import numpy as np

import physics

repository = Path(physics.__file__).parents[1]
sys.path[:0] = [str(repository / "scripts"), str(repository / "bundles" / "rim_relaxometry")]

from demos import rim_relaxometry as demo

# %%
# A scan
# ------
# One slice of a deformed MNI152 head, eight inversion times, Rician noise: an int16 NIfTI file and a JSON sidecar
# for each.

folder = repository / "build" / "gallery" / "rim_relaxometry"
scan = demo.simulate(slices=1, size=128)[0]
images = demo.write_scan(scan, folder / "scans")
print("\n".join(path.name for path in images[:2]), "...")
print(images[0].with_name(images[0].name.replace(".nii.gz", ".json")).read_text())

# %%
# Inference
# ---------
# On the command line: ``python -m monai.bundle run --bundle_root B --config_file B/configs/inference.json
# --dataset_dir SCANS --output_dir MAPS``.

bundle = repository / "bundles" / "rim_relaxometry"
monai.bundle.run(
    bundle_root=str(bundle),
    config_file=str(bundle / "configs" / "inference.json"),
    dataset_dir=str(folder / "scans"),
    output_dir=str(folder / "maps"),
)

# %%
# The map, its standard error, and the truth
# ------------------------------------------


def read(name):
    """One map, turned so that the front is up."""
    return np.rot90(nibabel.load(folder / "maps" / "sub-demo" / f"sub-demo_{name}.nii.gz").get_fdata()[..., 0])


t1, error, mask = read("T1map"), read("T1stderr"), read("mask") > 0
truth = np.rot90(scan.truth[..., 0])
hidden = np.where(mask, 1.0, np.nan)
figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), layout="constrained")
for panel, image, title in ((axes[0], t1, "$T_1$, estimate"), (axes[1], truth, "$T_1$, truth")):
    shown = panel.imshow(image * hidden, cmap="viridis", vmin=0, vmax=2.5)
    panel.set_title(title)
figure.colorbar(shown, ax=axes[:2], label="$T_1$ [s]", shrink=0.8)
shown = axes[2].imshow(100 * (t1 / np.where(mask, truth, 1.0) - 1) * hidden, cmap="RdBu_r", vmin=-20, vmax=20)
figure.colorbar(shown, ax=axes[2], label="error [%]", shrink=0.8)
axes[2].set_title("error")
shown = axes[3].imshow(1000 * error * hidden, cmap="magma", vmin=0, vmax=200)
figure.colorbar(shown, ax=axes[3], label="standard error of $T_1$ [ms]", shrink=0.8)
axes[3].set_title("standard error")
for panel in axes:
    panel.set_axis_off()

for name, channel in demo.TISSUES.items():
    pure = (np.rot90(scan.fractions[channel][..., 0]) > demo.PURE) & mask
    estimate = float(np.median(t1[pure]))
    print(f"{name}: median {estimate:.3f} s, truth {float(np.median(truth[pure])):.3f} s, {int(pure.sum())} voxels")
plt.show()
