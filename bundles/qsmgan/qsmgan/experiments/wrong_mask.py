"""Masks that are wrong: the robustness that the paper shows in its third figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from tqdm import tqdm

from physics.dipole import dipole_kernel
from shared_transforms.experiments import Row

from ..start import demeaned
from . import charts
from .bench import Bench
from .case import Case, Head, Triple
from .heads import draw_head
from .scores import scores

METHODS = ("tkd", "l2_gradient", "tv", "ilsqr", "medi", "unet", "qsmgan", "paper")
HEAD = 30  # of the test split
CONE = 0.1  # of the dipole kernel: below, a map is made of little data, and there are the streaks
RIGHT, SHOWN = "right", "with bone"


@torch.no_grad()
def wrong_mask(
    bench: Bench,
    noise_ppm: float = 0.003,
    methods: Sequence[str] = METHODS,
    rim_mm: float = 4.0,
    bite_mm: float = 25.0,
    away_mm: float = 6.0,
    scale: float = 0.7,
) -> list[Path]:
    """Error of the maps inside the right mask, away from where the given mask is wrong.

    Args:
        bench: methods and output folder.
        noise_ppm: standard deviation of the field [ppm].
        methods: names as in :data:`.methods.LABELS`.
        rim_mm: by which a mask is too large [mm].
        bite_mm: radius of the ball at the surface where others are too large or too small [mm].
        away_mm: what is nearer to the error of the mask is not counted [mm].
        scale: size of the head relative to others.
    """
    rim_mm, bite_mm, away_mm = bench.pick((rim_mm, bite_mm, away_mm), (1.0, 4.0, 1.0))
    head = draw_head(bench, HEAD, margin_mm=rim_mm, scale=scale)
    cases = cases_of(head, noise_ppm, bench.seed, bite_mm)
    right = cases[RIGHT].mask
    truth = cases[RIGHT].truth
    rows: list[Row] = []
    shown: dict[str, Tensor] = {}
    reference: dict[str, Tensor] = {}
    for name, case in tqdm(cases.items(), desc="wrong mask"):
        inside = counted(case.mask, right, away_mm)
        for method in bench.methods(noise_ppm, methods):
            estimate = bench.estimate(method, case)[0]
            reference.setdefault(method.name, estimate)
            rows.append({
                "mask": name, "method": method.name, **scores(estimate, truth, inside, ["nrmse", "slope"]),
                "nrmse_with_right": scores(reference[method.name], truth, inside, ["nrmse"])["nrmse"],
                "streaks": streaks(estimate, truth, inside),
                "streaks_with_right": streaks(reference[method.name], truth, inside),
                "change": _change(estimate, reference[method.name], inside), "voxels": int(inside.sum()),
            })  # fmt: skip
            if name == SHOWN:
                shown[method.name] = demeaned(estimate, right)
    notes = [
        f"One head of the test split, noise {noise_ppm:g} ppm where there is signal. rim of noise: the mask is "
        f"{rim_mm:g} mm too large, with noise alone in the rim; with bone: so much too large within "
        f"{bite_mm:g} mm of a place at the surface, where it holds bone with its field; bite: a ball of that radius is "
        "missing there, and with it its field.",
        f"All numbers are over the right mask, {away_mm:g} mm away from its surface and from what is wrong, against "
        "the truth there. nrmse [%]; streaks: the part of the error in the cone |D| < "
        f"{CONE:g} of k-space, over the norm of the truth [%]; change: difference to the method's own map with the "
        "right mask, over the norm of that [%]; _with_right: of that map, over the same voxels.",
    ]
    files = bench.write("wrong_mask", [*rows, *bench.absent(methods)], notes)
    places = ball(right, bite_mm, head.voxel_size) & right
    x, y, z = (int(v) for v in places.nonzero().double().mean(0))
    figure = charts.maps_figure(truth, shown, right, head.voxel_size, centre=(x, y, z))
    return [*files, bench.save_figure("wrong_mask", figure)]


def cases_of(head: Head, noise: float, seed: int, bite_mm: float) -> dict[str, Case]:
    """Acquisitions of one head with masks that are right, too large and too small.

    Args:
        head: with a mask that is larger than the brain, and the sources in between.
        noise: standard deviation of the field [ppm].
        seed: of the noise.
        bite_mm: radius of the part that is wrong in some [mm].
    """
    brain = head.inside(head.brain)
    rim = replace(brain, mask=head.mask, magnitude=head.magnitude)
    near = ball(brain.brain, bite_mm, head.voxel_size)
    return {
        RIGHT: brain.measure(noise, seed),
        "rim of noise": rim.measure(noise, seed, field=brain.local_field()),
        SHOWN: head.inside(head.brain | near).measure(noise, seed),
        "bite": brain.inside(brain.brain & ~near).measure(noise, seed),
    }


def ball(mask: Tensor, radius_mm: float, voxel_size: Triple) -> Tensor:
    """A ball around the mask's voxel that is farthest along (1, 1, 1)."""
    places = mask.nonzero().float() * torch.tensor(voxel_size, device=mask.device)
    centre = places[places.sum(1).argmax()]
    axes = [torch.arange(n, device=mask.device) * d for n, d in zip(mask.shape, voxel_size, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    return (grid - centre).norm(dim=-1) < radius_mm


def counted(mask: Tensor, right: Tensor, away_mm: float, voxel_size: Triple = (1.0, 1.0, 1.0)) -> Tensor:
    """Voxels of the right mask that are far from its surface and from where the other mask differs."""
    wrong = (mask != right) | ~right
    distance = distance_transform_edt((~wrong).cpu().numpy(), sampling=voxel_size)
    return torch.from_numpy(distance > away_mm).to(mask.device)


def streaks(estimate: Tensor, truth: Tensor, inside: Tensor, b0_direction: Triple = (0.0, 0.0, 1.0)) -> float:
    """Norm of the error in the cone of k-space where the dipole kernel is small, over the norm of the truth [%].

    Args:
        estimate: ``[X, Y, Z]`` [ppm].
        truth: ``[X, Y, Z]`` [ppm].
        inside: where they are compared, bool.
        b0_direction: unit vector in voxel axes.
    """
    truth = demeaned(truth, inside)
    error = demeaned(estimate, inside) - truth
    kernel = dipole_kernel(error.shape, (1.0, 1.0, 1.0), b0_direction, kind="kspace", device=error.device)
    part = torch.fft.irfftn(torch.fft.rfftn(error) * (kernel.abs() < CONE), s=error.shape)
    return 100 * float(part.norm() / truth.norm())


def _change(estimate: Tensor, reference: Tensor, inside: Tensor) -> float:
    reference = demeaned(reference, inside)
    return 100 * float((demeaned(estimate, inside) - reference).norm() / reference.norm().clamp(min=1e-30))
