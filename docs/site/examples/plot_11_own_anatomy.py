r"""
Your own anatomy
================

Simulators take heads from a folder of yours by one config value, ``anatomy#folder``. Here a folder with one head of
BrainWeb labels is made, T1 of a slice of it is simulated, and two steps of a training are made from it.
"""

import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import monai.bundle
import nibabel
import numpy as np
import torch

import physics

repository = Path(physics.__file__).parents[1]
bundle = repository / "bundles" / "rim_relaxometry"
sys.path.insert(0, str(bundle))

from rim_relaxometry.simulator import RelaxometrySimulator

# %%
# A folder of heads
# -----------------
# Each file is one head: labels 0 to 11 of BrainWeb, cubic voxels. This one has nested ellipsoids of skin (6), skull
# (7), fluid (1), grey (2) and white matter (3) in voxels of 2 mm.

folder = repository / "build" / "gallery" / "own_anatomy"
(folder / "heads").mkdir(parents=True, exist_ok=True)
x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (90, 108, 90)], indexing="ij")
radius = np.sqrt(x**2 + y**2 + z**2)
labels = np.zeros(radius.shape, np.uint8)
for edge, label in ((0.95, 6), (0.88, 7), (0.82, 1), (0.77, 2), (0.6, 3), (0.2, 1)):
    labels[radius < edge] = label
nibabel.save(nibabel.Nifti1Image(labels, np.diag([2.0, 2.0, 2.0, 1.0])), folder / "heads" / "mine.nii.gz")

# %%
# Simulated from it
# -----------------
# ``draw`` draws deformation, tissue values, acquisition and noise; ``simulate`` applies them.

simulator = RelaxometrySimulator(
    "T1", size=(96, 96), whole_slice=True, phantom_share=0.0, anatomy={"folder": str(folder / "heads")}
)
batch = simulator.simulate(simulator.draw(torch.Generator().manual_seed(3), 1))
t1 = batch["label"]["parameters"][0, -1]
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
shown = axes[0].imshow(np.rot90(labels[:, :, 45]), cmap="tab20", vmin=0, vmax=11)
axes[0].set_title("labels of the folder")
figure.colorbar(shown, ax=axes[0], label="BrainWeb label")
shown = axes[1].imshow(t1.numpy(), cmap="viridis", vmin=0, vmax=2.5)
axes[1].set_title("$T_1$, deformed, drawn")
figure.colorbar(shown, ax=axes[1], label="$T_1$ [s]")
shown = axes[2].imshow(batch["image"][0, 0].numpy(), cmap="gray")
axes[2].set_title("first image, with noise")
figure.colorbar(shown, ax=axes[2], label="signal [amplitude of CSF]")
for panel in axes:
    panel.set_axis_off()

# %%
# Trained on it
# -------------
# ``smoke.json`` makes a training of two short epochs. On the command line: ``python -m monai.bundle run --bundle_root B
# --config_file "['B/configs/train.json','B/configs/smoke.json']" --anatomy#folder HEADS --output_dir RUN``.

run = folder / "run"
shutil.rmtree(run, ignore_errors=True)  # a training is not started over another one
monai.bundle.run(
    bundle_root=str(bundle),
    config_file=[str(bundle / "configs" / name) for name in ("train.json", "smoke.json")],
    output_dir=str(run),
    **{"anatomy#folder": str(folder / "heads")},
)
print("\n".join(sorted(path.name for path in (run / "checkpoints").iterdir())))
plt.show()
