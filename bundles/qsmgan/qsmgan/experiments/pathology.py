"""Lesions that no network has seen in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from scipy.ndimage import binary_dilation, label
from torch import Tensor
from tqdm import tqdm

from shared_transforms.experiments import Row, charts

from ..anatomy import PATHOLOGIES
from . import charts as own_charts
from .bench import Bench
from .case import Head
from .heads import draw_head
from .methods import LABELS
from .scores import scores

METHODS = ("tkd", "l2_gradient", "tv", "ilsqr", "medi", "unet", "qsmgan", "paper")
KINDS = ("microbleed", "calcification", "tumour")
HEADS = 20  # first of the test split that is used here
GAP, RING, NEAR = 2, 5, 6  # voxels around a lesion: left out, end of the ring it is compared with, neighbourhood
SIZES = (1.5, 2.5)  # radii [mm] between the groups of the summary
WINDOW = (-0.5, 0.5)  # [ppm]


@torch.no_grad()
def pathology(
    bench: Bench,
    n_heads: int = 3,
    slow_heads: int = 1,
    noise_ppm: float = 0.003,
    methods: Sequence[str] = METHODS,
    scale: float = 0.8,
) -> list[Path]:
    """Contrast of microbleeds, calcifications and a tumour, and the error around them.

    Args:
        bench: methods and output folder.
        n_heads: number of heads, each with all three.
        slow_heads: heads on which iLSQR and MEDI run.
        noise_ppm: standard deviation of the field [ppm].
        methods: names as in :data:`.methods.LABELS`.
        scale: size of the heads relative to others.
    """
    rows: list[Row] = []
    files: list[Path] = []
    for number in tqdm(range(bench.pick(n_heads, 1)), desc="pathology"):
        head = draw_head(bench, HEADS + number, pathology=PATHOLOGIES, scale=scale)
        case, lesions = head.measure(noise_ppm, bench.seed + number), lesions_of(head)
        near = _dilated(torch.stack([lesion for _, lesion in lesions]).any(0), NEAR) & case.mask
        maps = {}
        for method in bench.methods(noise_ppm, methods, slow=number < slow_heads):
            estimate = maps[method.name] = bench.estimate(method, case)[0]
            common = {"head": str(number), "method": method.name}
            rows += [
                {
                    **common, "lesion": kind, "radius_mm": radius_of(lesion, head),
                    **contrast(estimate, case.truth, lesion, case.mask),
                }
                for kind, lesion in lesions
            ]  # fmt: skip
            around = scores(estimate, case.truth, near, ["nrmse"])["nrmse"]
            whole = scores(estimate, case.truth, case.mask, ["nrmse"])["nrmse"]
            rows.append({**common, "lesion": "neighbourhood of all", "nrmse": around, "nrmse_of_head": whole})
        if not files:
            centre = _centre(max(lesions, key=lambda item: int(item[1].sum()))[1])
            figure = own_charts.maps_figure(
                case.truth, maps, case.mask, head.voxel_size, display_range=WINDOW, error_range=0.25, centre=centre
            )
            files.append(bench.save_figure("pathology_maps", figure))
    notes = [
        f"{bench.pick(n_heads, 1)} heads of the test split with lesions of kinds that were in no training, noise "
        f"{noise_ppm:g} ppm. contrast: mean of the lesion less that of a ring {GAP + 1} to {RING} voxels around it "
        "[ppm]; recovered: estimated over true contrast. radius_mm: of a sphere of the lesion's volume. neighbourhood: "
        f"all lesions and {NEAR} voxels around them. iLSQR and MEDI see the first head alone.",
        "Rows without a head: median over the lesions of a kind and size that are counted, quartiles beside it.",
    ]
    files += bench.write("pathology", [*summary(rows), *rows, *bench.absent(methods)], notes)
    return [*files, bench.save_figure("pathology", _figure(rows))]


def lesions_of(head: Head) -> list[tuple[str, Tensor]]:
    """Kind and mask of every lesion: connected voxels of one label."""
    found = []
    for kind in KINDS:
        if kind in head.regions:
            parts, count = label(head.regions[kind].cpu().numpy())
            parts = torch.from_numpy(parts).to(head.mask.device)
            found += [(kind, parts == number) for number in range(1, count + 1)]
    return found


def radius_of(lesion: Tensor, head: Head) -> float:
    """Radius [mm] of a sphere of the volume."""
    x, y, z = head.voxel_size
    return float((3 * int(lesion.sum()) * x * y * z / (4 * torch.pi)) ** (1 / 3))


def contrast(estimate: Tensor, truth: Tensor, lesion: Tensor, mask: Tensor) -> Row:
    """Mean of a lesion less that of the ring around it, estimated and true [ppm], and their ratio."""
    ring = _dilated(lesion, RING) & ~_dilated(lesion, GAP) & mask
    if not bool(ring.any()):
        return {}
    found, true = (float(volume[lesion].mean() - volume[ring].mean()) for volume in (estimate, truth))
    return {"contrast": found, "true_contrast": true, "recovered": found / true if true else None}


def _dilated(mask: Tensor, voxels: int) -> Tensor:
    return torch.from_numpy(binary_dilation(mask.cpu().numpy(), iterations=voxels)).to(mask.device)


def _centre(lesion: Tensor) -> tuple[int, int, int]:
    x, y, z = (int(v) for v in lesion.nonzero().double().mean(0).round())
    return x, y, z


def summary(rows: Sequence[Row]) -> list[Row]:
    """Median and quartiles of the recovered contrast by method, kind and size."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        if row.get("recovered") is not None:
            groups.setdefault((row["method"], row["lesion"], _size(row["radius_mm"])), []).append(row["recovered"])
    found = []
    for (method, kind, size), values in sorted(groups.items(), key=lambda item: (item[0][1:], item[0][0])):
        low, median, high = torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        found.append({
            "head": None, "method": method, "lesion": kind, "size": size, "lesions": len(values),
            "recovered": median, "recovered_low": low, "recovered_high": high,
        })  # fmt: skip
    return found


def _size(radius: float) -> str:
    small, large = SIZES
    if radius < small:
        return f"radius < {small:g} mm"
    return f"{small:g} to {large:g} mm" if radius < large else f"radius > {large:g} mm"


def _figure(rows: Sequence[Row]) -> Figure:
    figure = charts.new_figure(10.0, 3.6)
    axes = figure.subplots(1, len(KINDS), squeeze=False)[0]
    for axis, kind in zip(axes, KINDS, strict=True):
        for name in LABELS:
            own = [r for r in rows if (r["lesion"], r["method"]) == (kind, name) and r.get("recovered") is not None]
            pairs = sorted((row["radius_mm"], row["recovered"]) for row in own)
            if pairs:
                radii, values = zip(*pairs, strict=True)
                charts.line(axis, radii, values, own_charts.COLOURS[name], LABELS[name], "o")
        axis.axhline(1.0, color="#3c4654", lw=0.8)
        axis.set_ylim(-0.2, 1.6)
        axis.set_xlabel("radius [mm]", fontsize=charts.FONT)
        axis.set_title(kind, fontsize=charts.FONT)
        charts.tidy(axis)
    axes[0].set_ylabel("contrast, estimated over true", fontsize=charts.FONT)
    charts.legend_below(figure, axes[0])
    return figure
