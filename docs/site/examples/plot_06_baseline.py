r"""
A classical estimator in the network's place
============================================

Every bundle has its classical methods as overlays: a second config, merged into the first, that replaces
``network_def``. Reading, maps, residual and report stay the same. Here maximum likelihood in place of the recurrent
inference machine, on a noisy inversion recovery.
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
# The overlay
# -----------

bundle = repository / "bundles" / "rim_relaxometry"
print((bundle / "configs" / "mle.json").read_text())

# %%
# Both on one scan
# ----------------
# On the command line: ``--config_file "['B/configs/inference.json','B/configs/mle.json']"``.

folder = repository / "build" / "gallery" / "baseline"
demo.SNR = 10.0
scan = demo.simulate(slices=1, size=96)[0]
demo.write_scan(scan, folder / "scans")
maps = {}
for name, configs in {"network": ["inference.json"], "maximum likelihood": ["inference.json", "mle.json"]}.items():
    monai.bundle.run(
        bundle_root=str(bundle),
        config_file=[str(bundle / "configs" / config) for config in configs],
        dataset_dir=str(folder / "scans"),
        output_dir=str(folder / name),
    )
    result = folder / name / "sub-demo"
    maps[name] = np.rot90(nibabel.load(result / "sub-demo_T1map.nii.gz").get_fdata()[..., 0])
mask = np.rot90(nibabel.load(result / "sub-demo_mask.nii.gz").get_fdata()[..., 0]) > 0

# %%
# Maps and errors
# ---------------

truth = np.rot90(scan.truth[..., 0])
hidden = np.where(mask, 1.0, np.nan)
figure, axes = plt.subplots(2, 3, figsize=(10, 6.4), layout="constrained")
for column, (name, image) in enumerate({**maps, "truth": truth}.items()):
    shown = axes[0, column].imshow(image * hidden, cmap="viridis", vmin=0, vmax=2.5)
    axes[0, column].set_title(name)
    if name in maps:
        error = 100 * (image / np.where(mask, truth, 1.0) - 1)
        below = axes[1, column].imshow(error * hidden, cmap="RdBu_r", vmin=-40, vmax=40)
        brain = (np.rot90(scan.fractions[1:3].sum(0)[..., 0]) > demo.PURE) & mask
        print(f"{name}: median absolute error {float(np.median(np.abs(error[brain]))):.1f} % in grey and white matter")
figure.colorbar(shown, ax=axes[0], label="$T_1$ [s]")
figure.colorbar(below, ax=axes[1], label="error [%]")
for panel in axes.flat:
    panel.set_axis_off()
plt.show()
