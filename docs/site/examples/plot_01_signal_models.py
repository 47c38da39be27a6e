r"""
T1 from an inversion recovery, and how well it can be known
===========================================================

A signal model of :mod:`physics.relaxometry` holds the acquisition; tissue is given in the call. It gives the signal,
its derivatives and the Cramer-Rao bound, the smallest standard deviation that an unbiased estimator can reach. The
maximum-likelihood estimate of :func:`physics.estimation.fit` is compared with it on simulated noise.
"""

import matplotlib.pyplot as plt
import torch

from physics.estimation import fit
from physics.noise import add_rician_noise, sigma_from_snr
from physics.relaxometry import InversionRecovery

# %%
# Signal of three tissues
# -----------------------
# Amplitudes are relative to that of cerebrospinal fluid. The magnitude folds at the zero crossing.

tissues = {"white matter": (0.65, 0.85), "grey matter": (0.8, 1.3), "cerebrospinal fluid": (1.0, 4.0)}  # A, T1 [s]
fine = InversionRecovery(torch.linspace(0.0, 6.0, 400))
measured = InversionRecovery([0.05, 0.12, 0.25, 0.45, 0.75, 1.2, 1.9, 2.8])

figure, axes = plt.subplots(layout="constrained")
for name, (amplitude, t1) in tissues.items():
    tissue = [torch.tensor(value) for value in (amplitude, 2.0, t1)]  # A, B, T1 [s]
    line = axes.plot(fine.times, fine(*tissue), label=f"{name}, $T_1$ = {t1:g} s")[0]
    axes.plot(measured.times, measured(*tissue), "o", color=line.get_color())
axes.set(xlabel="inversion time [s]", ylabel="signal [amplitude of CSF]", title="Inversion recovery, B = 2")
axes.legend()

# %%
# The bound, and an estimator that reaches it
# -------------------------------------------
# For each signal-to-noise ratio, 2000 voxels of white matter with Rician noise are fitted one by one, with B free. The
# spread of T1 follows the bound where the noise is small against the signal.

generator = torch.Generator().manual_seed(0)
truth = [torch.full((2000,), value) for value in (0.65, 2.0, 0.85)]
ratios = [10.0, 20.0, 40.0, 80.0]
spread, bound = [], []
for snr in ratios:
    sigma = sigma_from_snr(snr)
    data = add_rician_noise(measured(*truth), sigma, generator)
    found = fit(measured, data, noise="rician", sigma=sigma)
    spread.append(float(found.parameters[2].std()))
    bound.append(float(measured.cramer_rao_bound(*(p[0] for p in truth), sigma=sigma, noise="rician")[2]))
    print(f"SNR {snr:3g}: standard deviation {1000 * spread[-1]:5.1f} ms, bound {1000 * bound[-1]:5.1f} ms")

figure, axes = plt.subplots(layout="constrained")
axes.loglog(ratios, [1000 * s for s in spread], "o", label="maximum likelihood, 2000 voxels")
axes.loglog(ratios, [1000 * b for b in bound], label="Cramer-Rao bound")
axes.set(
    xlabel="signal-to-noise ratio", ylabel="standard deviation of $T_1$ [ms]", title="White matter, $T_1$ = 0.85 s"
)
axes.set_xticks(ratios, [f"{snr:g}" for snr in ratios], minor=False)
axes.set_yticks([20, 50, 100, 200], ["20", "50", "100", "200"])
axes.minorticks_off()
axes.legend()
plt.show()
