r"""
Perfusion of a stroke by ``stnet_perfusion``
============================================

A bolus passes a simulated brain with a stroke. The bundle finds the arterial and the venous curve in the series, maps
CBV, CBF, MTT and Tmax, and gives the volume of late tissue.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import monai.bundle
import nibabel
import numpy as np

import physics

repository = Path(physics.__file__).parents[1]
sys.path[:0] = [str(repository / "scripts"), str(repository / "bundles" / "stnet_perfusion")]

from demos import stnet_perfusion as demo

# %%
# A series
# --------

folder = repository / "build" / "gallery" / "stnet_perfusion"
scan = demo.simulate(scale=0.6)
series = demo.write_scan(scan, folder / "scans")
print(f"{series.name}: {scan.signal.shape}, a frame each {scan.repetition_time:g} s, TE {1000 * scan.echo_time:g} ms")

# %%
# Inference
# ---------

bundle = repository / "bundles" / "stnet_perfusion"
monai.bundle.run(
    bundle_root=str(bundle),
    config_file=str(bundle / "configs" / "inference.json"),
    dataset_dir=str(folder / "scans"),
    output_dir=str(folder / "maps"),
)
result = demo.compare(scan, folder / "maps" / "sub-demo", "ST-Net")
print(demo.table([result]))

# %%
# Maps against the truth
# ----------------------

maps = {name: nibabel.load(folder / "maps" / "sub-demo" / f"sub-demo_{name.lower()}.nii.gz").get_fdata()
        for name in demo.MAPS}  # fmt: skip
late = scan.tissue & (scan.truth["Tmax"] > demo.HYPOPERFUSED)
cut = int(late.sum((0, 1)).argmax())
tops = {"CBV": 8.0, "CBF": 80.0, "Tmax": 12.0}
figure, axes = plt.subplots(2, 3, figsize=(10, 7.5), layout="constrained")
for column, (name, unit) in enumerate(demo.MAPS.items()):
    for row, (what, volume) in enumerate((("estimate", maps[name]), ("truth", scan.truth[name]))):
        image = np.where(scan.mask, volume, np.nan)[..., cut]
        shown = axes[row, column].imshow(np.rot90(image), cmap="magma", vmin=0, vmax=tops[name])
        axes[row, column].set_title(f"{name}, {what}")
        axes[row, column].set_axis_off()
    figure.colorbar(shown, ax=axes[:, column], label=f"{name} [{unit}]", orientation="horizontal", shrink=0.8)
plt.show()
