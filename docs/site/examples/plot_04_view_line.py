r"""
View Line image of an iron particle
===================================

Iron particles are saturated: their field does not depend on B0. In a View Line image, excitation and readout both put
a spin where the field takes it to be, and lines that were straight bend. :mod:`physics.viewline` computes the field of
the imaged plane and the image of even and odd lines.
"""

import matplotlib.pyplot as plt
import torch

from physics.viewline import ViewLineSequence, central_plane_field, view_line_image

pixel, n = 0.2, 192  # [mm], pixels along each side of the plane
sequence = ViewLineSequence(field_of_view=n * pixel, lines=19)
axis = (torch.arange(n) - (n - 1) / 2) * pixel
depth = (torch.arange(25) - 12) * pixel
x, y, z = torch.meshgrid(axis, depth, axis, indexing="ij")
concentration = 3.5 * ((x**2 + y**2 + z**2).sqrt() <= 1.0)  # a ball of 1 mm radius [ug/mm^3]

field = central_plane_field(concentration, (pixel,) * 3)  # [uT]
plane = concentration[:, 12]
water = torch.ones(n, n)
water[plane > 0] = 0.9
lines = view_line_image(water, plane, field, (pixel, pixel), sequence)
straight = view_line_image(water, torch.zeros_like(plane), torch.zeros_like(field), (pixel, pixel), sequence)
print(f"Gz {sequence.slice_gradient:.0f} uT/mm, readout {sequence.readout_gradient:.0f} uT/mm")
print(f"largest field in the plane {float(field.abs().max()):.0f} uT")
print(f"a line moves by {abs(sequence.net_shift) * float(field.abs().max()):.2f} mm there")

# %%
# Field, even and odd lines
# -------------------------

figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained", sharex=True, sharey=True)
extent = (float(axis[0]), float(axis[-1])) * 2
shown = axes[0].imshow(field.T.numpy(), cmap="RdBu_r", vmin=-150, vmax=150, origin="lower", extent=extent)
axes[0].set(title="field of the iron", ylabel="z, along B0 [mm]")
figure.colorbar(shown, ax=axes[0], label="field [uT]", shrink=0.8)
for panel, image, title in ((axes[1], straight[0], "no iron, even lines"), (axes[2], lines[0], "even lines")):
    panel.imshow(image.T.numpy(), cmap="gray", vmin=0, vmax=1.5, origin="lower", extent=extent)
    panel.set_title(title)
shown = axes[3].imshow(lines[1].T.numpy(), cmap="gray", vmin=0, vmax=1.5, origin="lower", extent=extent)
axes[3].set_title("odd lines")
figure.colorbar(shown, ax=axes[3], label="signal [1]", shrink=0.8)
for panel in axes:
    panel.set(xlabel="x [mm]", xlim=(-8, 8), ylim=(-8, 8))
plt.show()
