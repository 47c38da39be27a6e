r"""
Iron particles in a View Line image by ``deepspio``
===================================================

Iron bends the lines of a View Line image; the network reads from even and odd lines how much iron there is.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import monai.bundle
import nibabel
import numpy as np

import physics

repository = Path(physics.__file__).parents[1]
sys.path[:0] = [str(repository / "scripts"), str(repository / "bundles" / "deepspio")]

from demos import deepspio as demo

# %%
# An image
# --------

folder = repository / "build" / "gallery" / "deepspio"
scan = demo.simulate(scale=0.75)
image = demo.write_scan(scan, folder / "scans")
print(f"{image.name}: {scan.lines.shape}, pixels of {1000 * scan.pixel:.0f} um")

# %%
# Inference
# ---------

bundle = repository / "bundles" / "deepspio"
monai.bundle.run(
    bundle_root=str(bundle),
    config_file=str(bundle / "configs" / "inference.json"),
    dataset_dir=str(folder / "scans"),
    output_dir=str(folder / "maps"),
)
print(demo.table([demo.compare(scan, folder / "maps" / "sub-demo", "DeepSPIO")]))

# %%
# Lines, concentration and truth
# ------------------------------

found = nibabel.load(folder / "maps" / "sub-demo" / "sub-demo_concentration.nii.gz").get_fdata()
side = 0.5 * scan.pixel * scan.truth.shape[0]
extent = (-side, side, -side, side)
figure, axes = plt.subplots(1, 5, figsize=(15, 3.6), layout="constrained")
for channel, name in enumerate(("even lines", "odd lines")):
    shown = axes[channel].imshow(np.rot90(scan.lines[:, :, 0, channel]), cmap="gray", vmin=0, vmax=0.8, extent=extent)
    axes[channel].set_title(name)
figure.colorbar(shown, ax=axes[:2], label="signal [1]", shrink=0.8)
for panel, volume, name in ((axes[2], found, "estimate"), (axes[3], scan.truth, "truth")):
    shown = panel.imshow(np.rot90(volume[..., 0]), cmap="magma", vmin=0, vmax=10, extent=extent)
    panel.set_title(f"iron, {name}")
figure.colorbar(shown, ax=axes[2:4], label="iron [ug/mm$^3$]", shrink=0.8)
error = (found - scan.truth)[..., 0]
shown = axes[4].imshow(np.rot90(error), cmap="RdBu_r", vmin=-6, vmax=6, extent=extent)
axes[4].set_title("error")
figure.colorbar(shown, ax=axes[4], label="error [ug/mm$^3$]", shrink=0.8)
for panel in axes:
    panel.set_xlabel("x [mm]")
axes[0].set_ylabel("z, along B0 [mm]")
plt.show()
