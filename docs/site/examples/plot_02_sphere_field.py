r"""
Field of a sphere, by convolution and in closed form
====================================================

:func:`physics.dipole.field_from_susceptibility` convolves a map of susceptibility with the dipole field. With the
exact kernel the field of an object made of voxels is exact; what is left against a true sphere comes from the sphere
being made of voxels. The usual kernel of k-space has wrap-around and ringing on top.
"""

import matplotlib.pyplot as plt
import torch

from physics.dipole import field_from_susceptibility, sphere_field

n, radius = 64, 10.0  # voxels of 1 mm; [mm]
axis = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)  # [mm]
outside = points.norm(dim=-1) > radius + 2.0

# %%
# Volume fractions at the surface, by 5 x 5 x 5 points in each voxel, keep the stairs small.

steps = (torch.arange(5, dtype=torch.float64) - 2) / 5
chi = torch.zeros(n, n, n, dtype=torch.float64)  # [ppm]
for shift in torch.cartesian_prod(steps, steps, steps):
    chi += ((points + shift).norm(dim=-1) <= radius) / 125

closed = sphere_field(points, radius)
fields = {
    "exact kernel": field_from_susceptibility(chi, (1.0, 1.0, 1.0)),
    "k-space kernel, no padding": field_from_susceptibility(chi, (1.0, 1.0, 1.0), kind="kspace", padding=1.0),
}
for name, field in fields.items():
    error = (field - closed)[outside]
    print(f"{name}: RMS error outside {1000 * float(error.square().mean().sqrt()):.3f} ppb")

# %%
# The plane through the centre, B0 upwards
# ----------------------------------------

figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained", sharex=True, sharey=True)
extent = (float(axis[0]), float(axis[-1])) * 2
for panel, (name, image) in zip(axes, {"closed form": closed, **fields}.items(), strict=True):
    shown = panel.imshow(image[:, n // 2].T.numpy(), cmap="RdBu_r", vmin=-0.5, vmax=0.5, origin="lower", extent=extent)
    panel.set(title=name, xlabel="x [mm]")
axes[0].set_ylabel("z, along B0 [mm]")
figure.colorbar(shown, ax=axes, label="field [ppm], sphere of 1 ppm")

# %%
# Along B0 through the centre
# ---------------------------

figure, panel = plt.subplots(layout="constrained")
panel.plot(axis, closed[n // 2, n // 2], "k", label="closed form")
for name, field in fields.items():
    panel.plot(axis, field[n // 2, n // 2], "--", label=name)
panel.set(xlabel="z [mm]", ylabel="field [ppm]", title="On the axis of the sphere")
panel.legend(loc="upper center")
plt.show()
