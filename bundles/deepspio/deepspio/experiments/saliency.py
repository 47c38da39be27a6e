"""What in the image the loss depends on: guided back-propagation over the concentration, and beside an air sphere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from shared_transforms.experiments import Row, charts

from ..explain import guided_saliency
from ..loss import WaveletLoss
from ..network import DeepSPIO
from .attention import bare, untrained
from .bench import Bench
from .charts import two_channels
from .landmarks import Landmarks, landmarks, share
from .scenes import AirSphere, Bottles, Scenes, phantoms

CONCENTRATIONS = (0.22, 3.23, 6.91, 10.58, 14.26, 17.94, 21.62, 25.31)  # of the paper's figure 13 [ug/mm^3]
BESIDE_AIR = (0.22, 6.91, 14.26, 21.62)  # of figure 14
AIR_PPM = 0.942  # 7.5e-8 cgs
NOISE_DB = 5.0
NEAR_RIM_MM = 1.0  # of the void's edge
PARTS = {
    "rim": "rim of the void", "bent": "bent lines beyond it", "straight": "straight lines", "outside": "outside",
    "sphere": "air sphere",
}  # fmt: skip
COLOURS = {"rim": "#D55E00", "bent": "#0072B2", "straight": "#999999", "outside": "#222222", "sphere": "#009E73"}
NO_NOISE, AIR = "no noise", "air sphere"


@dataclass(frozen=True)
class Case:
    """Phantoms of one figure.

    Attributes:
        scenes: images and truth.
        places: where what is in them.
        saliency: ``[n, X, Z]``.
    """

    scenes: Scenes
    places: Landmarks
    saliency: Tensor


def saliency(
    bench: Bench,
    concentrations: Sequence[float] = CONCENTRATIONS,
    beside_air: Sequence[float] = BESIDE_AIR,
    noise_db: float = NOISE_DB,
    air_ppm: float = AIR_PPM,
) -> list[Path]:
    """Shares of the saliency on the rim of the void, on the bent lines beyond it, and on an air sphere.

    Args:
        bench: the network "deepspio" and output folder.
        concentrations: of a bottle in the middle [ug/mm^3], without noise and with it.
        beside_air: the same with the sphere, without noise [ug/mm^3].
        noise_db: of the noisy images.
        air_ppm: susceptibility of the sphere.
    """
    network = bench.networks.get("deepspio")
    if not isinstance(network, DeepSPIO):
        return bench.write("saliency", bench.absent(["deepspio"]))
    rows: list[Row] = []
    cases: dict[str, Case] = {}
    settings: dict[str, tuple[Sequence[float], float | None, AirSphere | None]] = {
        NO_NOISE: (concentrations, None, None),
        f"{noise_db:g} dB": (concentrations, noise_db, None),
        AIR: (beside_air, None, AirSphere(air_ppm)),
    }
    for method, one in {"deepspio": network, "untrained": untrained(bench, network)}.items():
        for name, (true, decibels, sphere) in tqdm(settings.items(), f"saliency, {method}"):
            bottles = Bottles([float(c) for c in true], [(0.0, 0.0)] * len(true))
            noise = None if decibels is None else [decibels] * len(true)
            scenes = phantoms(bench, bottles, noise, bench.seed, sphere)
            case = Case(scenes, landmarks(bench, bottles, sphere), saliency_of(one, scenes))
            rows += [{"method": method, "data": name, **row} for row in _rows(case)]
            cases |= {name: case} if method == "deepspio" else {}
    notes = [
        "Simulated agar phantoms with one bottle in the middle. Saliency: magnitude of the gradient of the paper's "
        "loss (absolute relative deviation of the wavelet coefficients) at the image, guided (negative gradients cut "
        "off behind every rectifier), larger of the two channels; the image's scale held. magnitude: its mean inside "
        "the agar. Shares of the sum over the whole image: "
        f"rim: at most {NEAR_RIM_MM:g} mm from the edge of the void, where half of the signal is lost; bent: lines "
        "beyond, where particles or sphere change the image; straight: the rest of the agar; sphere: at most 1 mm "
        "from the sphere, and counted in none of the others; outside: of the agar. *_density: share over share of the "
        "area, 1 for saliency spread evenly. untrained: random weights of the same architecture. Above 17.5 ug/mm^3: "
        "extrapolation.",
    ]
    files = bench.write("saliency", rows, notes)
    files.append(bench.save_figure("saliency", saliency_figure([cases[name] for name in settings if name != AIR])))
    files.append(bench.save_figure("saliency_air_sphere", saliency_figure([cases[AIR]])))
    return [*files, bench.save_figure("saliency_shares", shares_figure(rows))]


def saliency_of(network: torch.nn.Module, scenes: Scenes) -> Tensor:
    """Guided saliency ``[n, X, Z]`` of the paper's loss, one image at a time; the image's unit does not matter."""
    loss = WaveletLoss().to(scenes.image.device)
    found = [
        guided_saliency(network, image, {"parameters": truth}, loss)[:, 0]
        for image, truth in zip(scenes.image.split(1), scenes.truth.split(1), strict=True)
    ]
    return torch.cat(found)


def parts_of(places: Landmarks) -> dict[str, Tensor]:
    """Disjoint parts ``[n, X, Z]`` that cover the image."""
    rim = (places.to_rim <= NEAR_RIM_MM) & places.inside & ~places.sphere
    bent = places.bent & ~rim & ~places.sphere
    return {
        "rim": rim,
        "bent": bent,
        "straight": places.inside & ~rim & ~bent & ~places.sphere,
        "outside": ~places.inside,
        "sphere": places.sphere,
    }


def _rows(case: Case) -> list[Row]:
    everywhere = torch.ones_like(case.places.inside)
    parts = parts_of(case.places)
    shares = {name: share(case.saliency, region, everywhere) for name, region in parts.items()}
    areas = {name: share(everywhere.float(), region, everywhere) for name, region in parts.items()}
    inside = (case.saliency * case.places.inside).sum((1, 2)) / case.places.inside.sum((1, 2))
    rows = []
    for k, true in enumerate(case.scenes.concentration.tolist()):
        row: Row = {"true": true, "magnitude": float(inside[k])}
        for name in parts:
            if areas[name][k] > 0:
                row |= {name: float(shares[name][k]), f"{name}_density": float(shares[name][k] / areas[name][k])}
        rows.append(row)
    return rows


def saliency_figure(cases: Sequence[Case]) -> Figure:
    """Images above their saliency, a pair of lines for each case; one scale for all (figures 13 and 14)."""
    count = len(cases[0].scenes)
    figure = charts.new_figure(1.5 * count + 0.7, 3.2 * len(cases))
    axes = figure.subplots(2 * len(cases), count, squeeze=False)
    top = max(_bright(case.saliency) for case in cases)
    for first, case in enumerate(cases):
        for k in range(count):
            axes[2 * first, k].imshow(two_channels(case.scenes.image[k]), origin="lower")
            shown = axes[2 * first + 1, k].imshow(
                case.saliency[k].T.cpu().numpy(), origin="lower", cmap="inferno", vmin=0, vmax=top
            )
            if first == 0:
                axes[0, k].set_title(f"{float(case.scenes.concentration[k]):.4g} ug/mm³", fontsize=charts.FONT)
    bar = figure.colorbar(shown, ax=axes[:, -1].tolist(), shrink=0.6, pad=0.02)
    bar.set_label("guided saliency of the loss", fontsize=charts.FONT)
    bar.ax.tick_params(labelsize=charts.FONT - 1)
    bare(axes.flat)
    return figure


def _bright(maps: Tensor) -> float:
    """The value that 99.9 % of the pixels do not reach."""
    value = float(torch.quantile(maps.flatten(1), 0.999, dim=1).amax())
    return value if value > 0 and math.isfinite(value) else 1.0


def shares_figure(rows: Sequence[Row]) -> Figure:
    """Shares of the saliency over the concentration, a panel for each kind of data."""
    kinds = list(dict.fromkeys(row["data"] for row in rows))
    figure = charts.new_figure(3.2 * len(kinds), 3.2)
    axes = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axis, kind in zip(axes, kinds, strict=True):
        own = [row for row in rows if row["data"] == kind]
        for method, style in {"deepspio": "o-", "untrained": ":"}.items():
            for part, title in PARTS.items():
                points: list[Mapping[str, float]] = [r for r in own if r["method"] == method and part in r]
                label = title if method == "deepspio" else "random weights" if part == "rim" else "_"
                charts.line(axis, [r["true"] for r in points], [r[part] for r in points], COLOURS[part], label, style)
        charts.tidy(axis)
        axis.set_title(kind, fontsize=charts.FONT)
        axis.set_xlabel("concentration [ug/mm³]", fontsize=charts.FONT)
    axes[0].set_ylabel("share of the saliency", fontsize=charts.FONT)
    charts.legend_below(figure, axes[-1])
    return figure
