"""Which parts of the image the layers attend to: Grad-CAM from the first convolution to the decoders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from shared_transforms.experiments import Row, charts

from ..explain import SCORES, attention_layers, feature_attention, grad_cam, on_image
from ..network import DeepSPIO
from .bench import Bench
from .charts import two_channels
from .landmarks import Landmarks, landmarks, share
from .scenes import Bottles, Scenes, phantoms
from .scores import mean_row

SECOND_BATCH = (13.95, 6.98, 3.49, 1.75)  # of the paper's table 1 [ug/mm^3]
CENTRES = ((0.0, 0.0), (-6.0, 4.3), (7.0, -3.1))  # of the bottles [mm]: lines and pixels lie differently
FIFTH, LAST_BLOCK = 4, 15  # of the layers: the convolution of figure 12, the end of the bottleneck of figure 11
WITHIN_MM = 0.25  # of a line's centre: half of the line's width of 1 mm is nearer than that
PARTS = {"centres": "line centres", "bent": "bent lines"}
STYLES = {"deepspio": ("#D55E00", "o-"), "untrained": ("#777777", "x")}


def attention(
    bench: Bench,
    concentrations: Sequence[float] = SECOND_BATCH,
    centres: Sequence[tuple[float, float]] = CENTRES,
    within_mm: float = WITHIN_MM,
) -> list[Path]:
    """Share of each layer's attention near the true, bent centres of the lines and where lines are bent.

    Beside the network stands one of the same architecture with random weights: what it attends to says nothing of what
    was learnt.

    Args:
        bench: the network "deepspio" and output folder.
        concentrations: of the phantoms' bottles [ug/mm^3].
        centres: of the bottles (x, z) from the middle of the image [mm]; each with every concentration.
        within_mm: of a line's centre counts as near.
    """
    network = bench.networks.get("deepspio")
    if not isinstance(network, DeepSPIO):
        return bench.write("attention", bench.absent(["deepspio"]))
    centres = bench.pick(list(centres), list(centres)[:1])
    bottles = Bottles(
        concentrations=[c for _ in centres for c in concentrations],
        centres=[(float(x), float(z)) for x, z in centres for _ in concentrations],
    )
    scenes, places = phantoms(bench, bottles), landmarks(bench, bottles)
    rows = []
    for name, one in {"deepspio": network, "untrained": untrained(bench, network)}.items():
        for number, layer in enumerate(tqdm(attention_layers(one), f"attention, {name}"), 1):
            maps = _inside_steps(one, scenes.image, layer)
            rows.append({"method": name, "number": number, "layer": layer, **_shares(maps, places, within_mm)})
    rows.append({"method": "image", "layer": "the image itself", **_shares(scenes.image.sum(1), places, within_mm)})
    notes = [
        f"Simulated agar phantoms with bottles of {', '.join(f'{c:g}' for c in concentrations)} ug/mm^3 at "
        f"{len(centres)} places, no noise. Grad-CAM of the sum of the approximation coefficients (decoders: of their "
        f"own), inside the agar. centres: share of the attention at most {within_mm:g} mm from the true centre "
        "of a line, bent as the field bends it; bent: where the particles change the image by more than a tenth of the "
        "agar's signal. *_chance: share of the area; *_ratio: share over chance, 1 for attention spread evenly. "
        "image: the same shares of the signal: attention that follows the signal alone has these. empty: images in "
        "which the map is 0 everywhere. untrained: random weights. From layer 6 on a feature's pixel "
        "is 4 pixels of the image and more, from layer 9 on wider than a line.",
    ]
    files = bench.write("attention", rows, notes)
    first = len(concentrations)
    return [
        *files,
        bench.save_figure("attention_layers", layers_figure(rows)),
        bench.save_figure("attention", block_figure(network, scenes, first)),
        bench.save_figure("attention_features", features_figure(network, scenes)),
    ]


def score_of(layer: str) -> str:
    """What a layer's attention explains: a decoder's own channel, else the approximation."""
    return SCORES[int(layer.split(".")[1])] if layer.startswith("decoders") else SCORES[0]


def _inside_steps(network: DeepSPIO, image: Tensor, layer: str) -> Tensor:
    """Attention ``[n, X, Z]``, one image at a time: the gradients of whole images are large."""
    return torch.cat([grad_cam(network, one, layer, score_of(layer))[:, 0] for one in image.split(1)])


def _shares(maps: Tensor, places: Landmarks, within_mm: float) -> Row:
    """Shares of the attention in the parts of the image, over the images whose map is not empty."""
    some = (maps * places.inside).sum((1, 2)) > 0
    row: Row = {"images": int(some.sum()), "empty": int((~some).sum())}
    for name, region in {"centres": places.to_centre <= within_mm, "bent": places.bent}.items():
        chance = share(torch.ones_like(maps), region, places.inside)
        found = share(maps, region, places.inside)
        if some.any():
            row |= mean_row(found[some], column=name)
            row |= {f"{name}_chance": float(chance[some].mean())}
            row |= {f"{name}_ratio": float((found / chance)[some].mean())}
    row["images"] = int(some.sum())
    return row


def untrained(bench: Bench, network: DeepSPIO) -> DeepSPIO:
    """The network with the random weights that a training starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bench.seed)
        return DeepSPIO(network.width, network.in_channels).to(bench.device).eval()


def layers_figure(rows: Sequence[Row]) -> Figure:
    """Share over chance of the attention along the layers, a panel for each part of the image."""
    figure = charts.new_figure(9.0, 3.4)
    axes = figure.subplots(1, len(PARTS), squeeze=False)[0]
    for axis, (part, title) in zip(axes, PARTS.items(), strict=True):
        axis.axhline(1.0, color="#666666", lw=0.8, ls="--")
        axis.axhline(rows[-1][f"{part}_ratio"], color="#0072B2", lw=0.9, ls=":", label="the image itself")
        for name, (colour, style) in STYLES.items():
            own = [row for row in rows if row["method"] == name]
            charts.line(axis, [r["number"] for r in own], [r.get(f"{part}_ratio") for r in own], colour, name, style)
        for end, label in ((12.5, "bottleneck"), (16.5, "decoders")):
            axis.axvline(end, color="#cccccc", lw=0.8)
            axis.annotate(label, (end + 0.1, 0.02), xycoords=("data", "axes fraction"), rotation=90, va="bottom",
                          fontsize=charts.FONT - 2, color="#777777")  # fmt: skip
        charts.tidy(axis)
        axis.set_ylim(bottom=0)
        axis.set_xticks([1, 3, 6, 9, 12, 16, 20])
        axis.set_xlabel("layer", fontsize=charts.FONT)
        axis.set_title(f"attention on {title} / chance", fontsize=charts.FONT)
    charts.legend_below(figure, axes[0])
    return figure


def block_figure(network: DeepSPIO, scenes: Scenes, count: int) -> Figure:
    """Images of the first phantoms, the attention of the bottleneck's last block, and both multiplied (figure 11)."""
    image = scenes.image[:count]
    layer = attention_layers(network)[LAST_BLOCK]
    maps = _inside_steps(network, image, layer)[:, None]
    figure = charts.new_figure(2.1 * count, 6.2)
    axes = figure.subplots(3, count, squeeze=False)
    for k in range(count):
        axes[0, k].set_title(f"{float(scenes.concentration[k]):.4g} ug/mm³", fontsize=charts.FONT)
        axes[0, k].imshow(two_channels(image[k]), origin="lower")
        for line, shown in ((1, maps), (2, on_image(maps, image))):
            axes[line, k].imshow(shown[k, 0].T.cpu().numpy(), origin="lower", cmap="inferno", vmin=0)
    bare(axes.flat, list(axes[:, 0]), ("even, odd lines", "attention", "attention x image"))
    return figure


def features_figure(network: DeepSPIO, scenes: Scenes) -> Figure:
    """The first phantom and the attention maps of all features of the fifth convolution (figure 12).

    Each on a scale of its own, with its share of the sum of all.
    """
    image = scenes.image[:1]
    layer = attention_layers(network)[FIFTH]
    maps = feature_attention(network, image, layer, score_of(layer))[0].cpu()
    lines = 3
    columns = -(-(len(maps) + 1) // lines)
    figure = charts.new_figure(1.25 * columns, 1.45 * lines)
    axes = figure.subplots(lines, columns, squeeze=False)
    axes[0, 0].imshow(two_channels(image[0]), origin="lower")
    axes[0, 0].set_title("image", fontsize=charts.FONT - 1)
    shares = maps.sum((1, 2)) / maps.sum().clamp_min(torch.finfo(maps.dtype).tiny)
    for number, (axis, one) in enumerate(zip(list(axes.flat)[1:], maps, strict=False), 1):
        axis.imshow(one.T.numpy(), origin="lower", cmap="inferno", vmin=0, vmax=float(one.amax()) or 1.0)
        axis.set_title(f"{number}: {100 * float(shares[number - 1]):.0f} %", fontsize=charts.FONT - 1)
    bare(axes.flat)
    for axis in list(axes.flat)[len(maps) + 1 :]:
        axis.set_axis_off()
    return figure


def bare(axes: Iterable[Axes], first: Sequence[Axes] = (), labels: Sequence[str] = ()) -> None:
    """Take ticks and frames off axes; label the first of each line."""
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    for axis, label in zip(first, labels, strict=True):
        axis.set_ylabel(label, fontsize=charts.FONT)
