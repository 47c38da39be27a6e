r"""
Deconvolution of a delayed bolus
================================

A bolus of contrast agent comes to a tissue late, or before it is seen in the artery that was chosen.
:mod:`physics.perfusion` makes the curves from analytic spectra; the deconvolutions find the residue function again. Its
maximum is the flow, the time of the maximum is Tmax. Against noise all of them smooth the residue, which lowers its
maximum: how much must not depend on the delay.
"""

import matplotlib.pyplot as plt
import torch

from physics.perfusion import ArterialInput, perfusion_maps, tissue_concentration

times = torch.arange(0.0, 60.0, 1.5)  # [s]
dt = 1.5  # [s]
arterial = ArterialInput(*(torch.tensor(value) for value in (8.0, 3.0, 1.5, 6.0)))  # arrival [s], alpha, beta [s], peak
venous = arterial.delayed(6.0, 1.0)
delays = torch.linspace(-3.0, 9.0, 25)  # [s]
flow, transit = 50.0, 4.0  # CBF [ml/100 g/min], MTT [s]
tissue = tissue_concentration(
    arterial, times, torch.full_like(delays, flow), torch.full_like(delays, transit), delay=delays
)

figure, axes = plt.subplots(layout="constrained")
axes.plot(times, arterial.concentration(times) / 10, "k", label="artery, a tenth")
for index in (0, 6, 24):
    axes.plot(times, tissue[index], ".-", label=f"tissue, delay {float(delays[index]):.1f} s")
axes.set(xlabel="time [s]", ylabel="concentration [mM]", title=f"CBF {flow:g} ml/100 g/min, MTT {transit:g} s")
axes.legend()

# %%
# Flow and Tmax by four methods
# -----------------------------
# 200 repetitions with noise for each delay; lines are medians. sSVD has no residue before time zero: where tissue comes
# before the artery, its flow depends on the delay and its Tmax stays at 0. The other three have the same flow
# throughout.

generator = torch.Generator().manual_seed(0)
noise = 0.03 * float(tissue[0].max()) * torch.randn((200, *tissue.shape), generator=generator)
aif, vof = arterial.concentration(times), venous.concentration(times)
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for method, name in {"ssvd": "sSVD", "csvd": "cSVD", "osvd": "oSVD", "tikhonov": "Tikhonov"}.items():
    maps = perfusion_maps(tissue + noise, aif, vof, dt, method)
    cbf, tmax = maps["cbf"].median(0).values, maps["tmax"].median(0).values
    print(
        f"{name:8}: CBF at -3, 0, 9 s: {float(cbf[0]):4.1f}, {float(cbf[6]):4.1f}, {float(cbf[-1]):4.1f} ml/100 g/min"
    )
    axes[0].plot(delays, cbf, label=name)
    axes[1].plot(delays, tmax, label=name)
axes[0].axhline(flow, color="k", linestyle=":", label="truth")
axes[1].plot(delays, delays, "k:", label="delay")
axes[0].set(xlabel="delay [s]", ylabel="CBF [ml/100 g/min]", ylim=(0, 60))
axes[1].set(xlabel="delay [s]", ylabel="Tmax [s]")
axes[0].legend()
plt.show()
