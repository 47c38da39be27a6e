r"""
Lesions with a paramagnetic rim by ``qsmrim_net``
=================================================

A simulated subject with multiple sclerosis: susceptibility map, FLAIR and lesion mask in, a probability of a rim for
each lesion out.
"""

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import monai.bundle
import nibabel
import numpy as np

import physics

repository = Path(physics.__file__).parents[1]
sys.path[:0] = [str(repository / "scripts"), str(repository / "bundles" / "qsmrim_net")]

from demos import qsmrim_net as demo

# %%
# A subject
# ---------

folder = repository / "build" / "gallery" / "qsmrim_net"
subject = demo.simulate(scale=0.5)
chi = demo.write_scans(subject, folder / "scans")
truth = demo.true_rims(subject)
print(f"{tuple(subject.qsm.shape)} voxels, {len(truth)} lesions, {sum(truth)} of them with a rim: {chi.name}")

# %%
# Inference
# ---------

bundle = repository / "bundles" / "qsmrim_net"
monai.bundle.run(
    bundle_root=str(bundle),
    config_file=str(bundle / "configs" / "inference.json"),
    dataset_dir=str(folder / "scans"),
    output_dir=str(folder / "maps"),
)
result = folder / "maps" / "sub-demo"
with (result / "sub-demo_lesions.csv").open(newline="") as file:
    lesions = list(csv.DictReader(file))
print(demo.table([demo.compare(subject, result, "QSMRim-Net")]))

# %%
# The lesion with the highest probability
# ---------------------------------------

probability = nibabel.load(result / f"sub-demo_{demo.PROBABILITY}.nii.gz").get_fdata()
chi = nibabel.load(folder / "scans" / f"sub-demo_{demo.CHIMAP}.nii.gz").get_fdata()
flair = nibabel.load(folder / "scans" / "sub-demo_FLAIR.nii.gz").get_fdata()
x, y, z = np.argwhere(probability == probability.max()).mean(0).round().astype(int)
window = (slice(max(0, x - 25), x + 25), slice(max(0, y - 25), y + 25), z)
figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
inside = np.where(probability > 0, probability, np.nan)
for panel, volume, low, high, colours, title, label in (
    (axes[0], flair, 0, np.percentile(flair[flair > 0], 99.8), "gray", "FLAIR", "signal [a.u.]"),
    (axes[1], chi, -0.1, 0.1, "gray", "susceptibility", "susceptibility [ppm]"),
    (axes[2], inside, 0, 1, "magma", "rim", "probability of a rim [1]"),
):
    shown = panel.imshow(np.rot90(volume[window]), cmap=colours, vmin=low, vmax=high)
    panel.set_title(title)
    panel.set_axis_off()
    figure.colorbar(shown, ax=panel, label=label, orientation="horizontal", shrink=0.8)
plt.show()
