"""Do small structures survive? Points, lines and small lesions put into a map (section 5.1.2, Fig. 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d
from tqdm import tqdm

from shared_transforms.experiments import Row, interval
from shared_transforms.metrics import bootstrap, coefficient_of_variation, relative_bias

from . import charts
from .bench import Bench
from .monte_carlo import repeat
from .scenes import Scene, acquisition_of, brains, signal_of
from .statistics import Array, quantiles, spread_test, welch

LINE = 9  # [pixels]
HYPO, HYPER = 0.4, 1.2  # [s]
APART = 14  # [pixels] between two structures
# Section 6.1: relative bias [%] of the RIM at the hypo-intense point, without and with it.
PAPER_BIAS = {("rim", "point_hypo"): (0.68, 3.43)}


@dataclass(frozen=True)
class Structure:
    """A change of T1: its pixels and their immediate neighbours, ``[H, W]`` each, and the new value [s]."""

    name: str
    pixels: Tensor
    neighbours: Tensor
    t1: float


def neighbours_of(pixels: Tensor) -> Tensor:
    """The pixels that touch a region, at corners too, ``[H, W]`` bool."""
    grown = max_pool2d(pixels[None, None].float(), 3, 1, 1)[0, 0] > 0
    return grown & ~pixels


def find_places(tissue: Tensor, width: int, count: int, taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pixels amid a tissue, far from each other and from those taken, which is extended.

    Args:
        tissue: fraction ``[H, W]``.
        width: of the box in which the tissue is to be as pure as possible [pixels, odd].
        count: number of places.
        taken: (row, column) of earlier places.
    """
    purity = avg_pool2d(tissue[None, None], width, 1, width // 2)[0, 0].clone()
    rows, columns = (torch.arange(n, device=tissue.device) for n in purity.shape)
    found = []
    for old in list(taken):
        purity[((rows - old[0]).abs() < APART)[:, None] & ((columns - old[1]).abs() < APART)] = -1.0
    for _ in range(count):
        place = int(purity.argmax())
        if float(purity.flatten()[place]) <= 0:
            break
        row, column = divmod(place, purity.shape[1])
        found.append((row, column))
        purity[((rows - row).abs() < APART)[:, None] & ((columns - column).abs() < APART)] = -1.0
    taken += found
    return found


def _pixels(shape: torch.Size, row: int, column: int, height: int, width: int, device: torch.device) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    mask[max(0, row - height // 2) : row + height // 2 + 1, max(0, column - width // 2) : column + width // 2 + 1] = (
        True
    )
    return mask


def paper_structures(scene: Scene) -> list[Structure]:
    """A hypo-intense point in GM; a hyper-intense point, a vertical and a horizontal line in WM."""
    gm, wm = scene.fractions[0, 1], scene.fractions[0, 2]
    taken: list[tuple[int, int]] = []
    [grey] = find_places(gm, 5, 1, taken)
    vertical, horizontal = find_places(wm, LINE + 4, 2, taken)
    [white] = find_places(wm, 7, 1, taken)
    shapes = (
        ("point_hypo", grey, (1, 1), HYPO),
        ("point_hyper", white, (1, 1), HYPER),
        ("line_vertical", vertical, (LINE, 1), HYPER),
        ("line_horizontal", horizontal, (1, LINE), HYPER),
    )
    found = []
    for name, (row, column), (height, width), t1 in shapes:
        pixels = _pixels(gm.shape, row, column, height, width, gm.device)
        found.append(Structure(name, pixels, neighbours_of(pixels), t1))
    return found


def insert(scene: Scene, structures: Sequence[Structure]) -> Scene:
    """The scene with the structures in its T1 map."""
    parameters = scene.parameters.clone()
    for structure in structures:
        parameters[:, -1, structure.pixels] = structure.t1
    return Scene(parameters, scene.fractions)


def structures(
    bench: Bench,
    snr: float = 10.0,
    repetitions: int = 100,
    slow_repetitions: int = 25,
    lesion_snr: Sequence[float] = (10, 30),
) -> list[Path]:
    """Bias and variation in and beside small structures, with (E2) and without (E1) them; contrast of small lesions.

    Args:
        bench: estimators and output folder.
        snr: signal-to-noise ratio of E1 and E2 (paper: 10).
        repetitions: C of the networks (paper: 100).
        slow_repetitions: C of the maximum-likelihood estimators.
        lesion_snr: signal-to-noise ratios of the lesions.
    """
    counts = bench.pick((repetitions, slow_repetitions), (4, 3))
    plain = brains(
        "T1",
        1,
        bench.seed + 3,
        table_means=True,
        texture=0.5,
        anatomy=bench.anatomy,
        device=bench.device,
        size=bench.size,
    )
    placed = paper_structures(plain)
    scenes = {"E1": plain, "E2": insert(plain, placed)}
    rows, samples, maps = [], {}, {}
    for method in tqdm(_methods(bench), desc="structures"):
        count = counts[1] if method.slow else counts[0]
        runs = {
            scenario: _repeat(bench, method, scene, snr, count, bench.seed + number)
            for number, (scenario, scene) in enumerate(scenes.items())
        }
        maps[method.name] = runs["E2"].mean(0)
        for structure in placed:
            for region, mask in (("structure", structure.pixels), ("neighbourhood", structure.neighbours)):
                row, drawn = _compare(scenes, runs, mask)
                paper = (
                    PAPER_BIAS.get((method.name, structure.name), (None, None))
                    if region == "structure"
                    else (None,) * 2
                )
                rows.append({
                    "structure": structure.name, "region": region, "pixels": int(mask.sum()), "snr": snr,
                    "method": method.name, "C": count, **row, "paper_bias_E1": paper[0], "paper_bias_E2": paper[1],
                })  # fmt: skip
                samples[method.name, structure.name, region] = drawn
    notes = [
        "One held-out slice, Gaussian noise, N31. bias: median over the pixels of the relative bias [%] over C "
        "repetitions; its SD is over the repetitions of the region's mean error. p_bias: Welch's test of the "
        "region's mean error in E1 against E2, of independent noise. p_cv: the same of its absolute deviation from "
        "the median (Brown and Forsythe). The paper tests per pixel; a point has one pixel, so here the samples are "
        "repetitions.",
        "The MLEs have fewer repetitions, so less power to find a difference. Lesions: see the table lesions.",
    ]
    files = bench.write("structures", [*rows, *bench.absent()], notes)
    files.append(bench.save_figure("structures", _figure(scenes, placed, maps, samples)))
    return [*files, *_lesions(bench, plain, bench.pick(list(lesion_snr), [10.0]), counts)]


def _methods(bench: Bench) -> list[Any]:
    return bench.methods(acquisition_of("T1", "N31")["times"], paper_smoothness=True, trivial=False)


def _repeat(bench: Bench, method: Any, scene: Scene, snr: float, count: int, seed: int) -> Tensor:
    """T1 ``[C, H, W]`` of C repetitions."""
    acquisition: dict[str, Any] = acquisition_of("T1", "N31", bench.device)
    signal = signal_of("T1", scene, acquisition)[0]
    acquisition["noise"] = "gaussian"
    return repeat(method, signal, acquisition, snr, scene.inside[0], count, seed).estimates[:, 2]


def _compare(scenes: Mapping[str, Scene], runs: Mapping[str, Tensor], mask: Tensor) -> tuple[Row, dict[str, Array]]:
    """Columns of one region and the mean error [%] of each repetition, by scenario."""
    row: Row = {}
    means, pixels = {}, {}
    for scenario, estimates in runs.items():
        truth = scenes[scenario].parameters[0, 2][mask]
        found = estimates[:, mask]
        means[scenario] = (100 * (found / truth - 1)).double().mean(1).cpu().numpy()
        bias, variation = relative_bias(found, truth), coefficient_of_variation(found)
        pixels[scenario] = {"bias": bias.cpu().numpy(), "cv": variation.cpu().numpy(), "mean": means[scenario]}
        row[f"bias_{scenario}"] = quantiles(bias, (0.5,))[0]
        row[f"bias_sd_{scenario}"] = float(means[scenario].std(ddof=1))
        row[f"cv_{scenario}"] = quantiles(variation, (0.5,))[0]
    row["t_bias"], row["p_bias"] = welch(means["E1"], means["E2"])
    row["t_cv"], row["p_cv"] = spread_test(means["E1"], means["E2"])
    return row, {f"{scenario} {key}": v for scenario, part in pixels.items() for key, v in part.items()}


def _lesions(bench: Bench, plain: Scene, snr: Sequence[float], counts: tuple[int, int], number: int = 4) -> list[Path]:
    """Share of its contrast that a lesion of radius 1 or 2 pixels keeps."""
    taken: list[tuple[int, int]] = []
    centres = find_places(plain.fractions[0, 2], 9, 2 * number, taken)
    rows_at, columns_at = (torch.arange(n, device=plain.fractions.device) for n in plain.fractions.shape[-2:])
    lesions: dict[int, list[Tensor]] = {1: [], 2: []}
    for k, (row, column) in enumerate(centres):
        radius = 1 + k % 2
        lesions[radius].append((rows_at[:, None] - row) ** 2 + (columns_at - column) ** 2 <= radius**2)
    discs = [Structure("lesion", disc, neighbours_of(disc), HYPER) for parts in lesions.values() for disc in parts]
    scene, rows = insert(plain, discs), []
    for level in snr:
        for method in tqdm(_methods(bench), desc=f"lesions, SNR {level:g}"):
            count = counts[1] if method.slow else counts[0]
            estimates = _repeat(bench, method, scene, level, count, bench.seed + 7)
            for radius, parts in lesions.items():
                kept = torch.stack([_contrast(estimates, scene.parameters[0, 2], disc) for disc in parts]).mean(0)
                mean = bootstrap(count, lambda chosen: float(kept[torch.as_tensor(chosen)].mean()), seed=bench.seed)  # noqa: B023
                rows.append({
                    "radius_px": radius, "lesions": len(parts), "snr": level, "method": method.name, "C": count,
                    **interval("contrast_kept", mean), "sd_of_one_scan": float(kept.std()),
                })  # fmt: skip
    notes = [
        f"Discs of T1 {HYPER:g} s in white matter of {plain.parameters[0, 2][discs[0].neighbours].mean():.2f} s; "
        "contrast: mean in the disc less the mean of the ring 2 to 4 pixels around it, over the true one. Gaussian "
        "noise, N31.",
    ]
    return bench.write("lesions", [*rows, *bench.absent()], notes)


def _contrast(estimates: Tensor, truth: Tensor, disc: Tensor) -> Tensor:
    """Contrast of a disc to its surroundings over the true one, ``[C]``."""
    near = disc | neighbours_of(disc)
    wide = near | neighbours_of(near)
    ring = (wide | neighbours_of(wide)) & ~near

    def difference(maps: Tensor) -> Tensor:
        return maps[..., disc].mean(-1) - maps[..., ring].mean(-1)

    return (difference(estimates) / difference(truth)).double().cpu()


def _figure(
    scenes: Mapping[str, Scene], placed: Sequence[Structure], maps: Mapping[str, Tensor], samples: Mapping[Any, Any]
) -> Figure:
    figure = charts.new_figure(12.0, 10.0)
    grid = figure.add_gridspec(2, 1, height_ratios=(1.0, 1.1))
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    _images(upper, scenes["E2"].parameters[0, 2], placed, maps)
    axes = lower.subplots(2, 2, squeeze=False)
    places = [_label(structure, scenario) for structure in placed for scenario in ("E1", "E2")]
    for row, (key, label) in enumerate((("mean", "error of each scan [%]"), ("cv", "CV of the pixels [%]"))):
        for column, region in enumerate(("structure", "neighbourhood")):
            boxes = {
                method: {
                    _label(s, scenario): _quantiles_of(samples[method, s.name, region][f"{scenario} {key}"])
                    for s in placed for scenario in ("E1", "E2")
                }
                for method in maps
            }  # fmt: skip
            charts.grouped_boxes(axes[row, column], boxes, places, (-40, 100) if key == "mean" else (0, 60))
            axes[row, column].set_ylabel(label, fontsize=charts.FONT)
            axes[row, column].set_title(region, fontsize=charts.FONT)
    charts.legend_below(figure, axes[0, 0])
    return figure


def _quantiles_of(values: Array) -> list[float]:
    return quantiles(torch.as_tensor(values))


def _label(structure: Structure, scenario: str) -> str:
    kind, _, which = structure.name.partition("_")
    return f"{which}\n{kind} {scenario}"


def _images(figure: Any, truth: Tensor, placed: Sequence[Structure], maps: Mapping[str, Tensor]) -> None:
    """Truth and mean estimates around each structure, one row of images for each."""
    names = ["truth", *maps]
    axes = figure.subplots(len(placed), len(names), squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    for line_of, structure in zip(axes, placed, strict=True):
        row, column = (int(x.double().mean()) for x in structure.pixels.nonzero().T)
        box = (slice(max(0, row - 8), row + 9), slice(max(0, column - 8), column + 9))
        for axis, name in zip(line_of, names, strict=True):
            image = (truth if name == "truth" else maps[name])[box].cpu().numpy()
            shown = axis.imshow(image, vmin=0.3, vmax=1.9, cmap="magma", interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if structure is placed[0]:
                axis.set_title(name, fontsize=charts.FONT)
        line_of[0].set_ylabel(structure.name, fontsize=charts.FONT - 1)
    figure.colorbar(shown, ax=axes, label="T1 [s], mean of C", fraction=0.02, pad=0.01)
