"""The digital reference object's anatomy: reproducible, in range, with the vessels and lesions that it says."""

from __future__ import annotations

import time
from dataclasses import fields

import pytest
import torch
from stnet_perfusion.anatomy import HEAD_MM, Anatomy, draw_anatomy, paint_anatomy
from stnet_perfusion.territories import KINDS, LEAVES, border_distance, depth_in, leaf_distances
from torch import Tensor

from shared_transforms.anatomy import MNI_MIDDLE_MM, Head, head_to_mni, load_head, mni_to_head
from shared_transforms.errors import QMRIError

STANDARD = ((96, 112, 8), (2.0, 2.0, 6.0))
SMALL = ((40, 48, 4), (5.0, 5.0, 10.0))
VOXEL_ML = 0.024


def draw(seed: int, n: int, grid: tuple = STANDARD, **options: object) -> Anatomy:
    return draw_anatomy(torch.Generator().manual_seed(seed), n, *grid, **options)


def tensors(drawn: object) -> list[Tensor]:
    found: list[Tensor] = []
    for item in fields(drawn):  # type: ignore[arg-type]
        value = getattr(drawn, item.name)
        if isinstance(value, Tensor):
            found.append(value)
        elif hasattr(value, "__dataclass_fields__"):
            found += tensors(value)
    return found


@pytest.fixture(scope="module")
def drawn() -> Anatomy:
    return draw(7, 8, lesion_share=1.0)


@pytest.fixture(scope="module")
def painted(drawn: Anatomy) -> dict[str, Tensor]:
    return paint_anatomy(drawn)


def test_volumes_are_in_range(painted: dict[str, Tensor]) -> None:
    fractions = [painted[name] for name in ("gm", "wm", "csf", "artery", "vein")]
    for values in [*fractions, *(painted[name] for name in ("oligaemia", "penumbra", "core"))]:
        assert values.shape == (8, *STANDARD[0])
        assert values.dtype == torch.float32
        assert float(values.min()) >= 0.0 and float(values.max()) <= 1.0 + 1e-6
    assert float(torch.stack(fractions).sum(0).max()) <= 1.0 + 1e-5
    assert painted["brain"].dtype == torch.bool and painted["territory"].dtype == torch.uint8
    assert bool(((painted["territory"] > 0) == painted["brain"]).all())
    assert float(painted["arrival"].min()) >= 0.0 and float(painted["arrival"].max()) <= 1.5


def test_tissue_volumes_are_those_of_a_brain(painted: dict[str, Tensor]) -> None:
    """48 mm through the middle of a brain of 1.0 to 1.5 l: about half of it, more grey than white matter."""
    grey, white = (painted[name].sum((1, 2, 3)) * VOXEL_ML for name in ("gm", "wm"))
    assert bool(((grey + white > 450.0) & (grey + white < 950.0)).all())
    assert bool(((grey / white > 0.7) & (grey / white < 1.8)).all())


def test_same_seed_same_volumes() -> None:
    first, second = (paint_anatomy(draw(3, 2, SMALL, lesion_share=1.0)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_select_paints_the_same_sample() -> None:
    whole = draw(4, 3, SMALL, lesion_share=1.0)
    together, alone = paint_anatomy(whole), paint_anatomy(whole.select(2))
    assert len(whole.select(2)) == 1
    assert all(torch.equal(together[name][2:], alone[name]) for name in together)


def test_splits_and_seeds_share_no_number() -> None:
    train, held_out, other = (
        tensors(draw(seed, 4, SMALL, split=s)) for seed, s in ((1, "train"), (1, "test"), (2, "train"))
    )
    large = [i for i, values in enumerate(train) if values.is_floating_point() and values.numel() > 100]
    assert len(large) >= 5
    for index in large:
        for values in (held_out, other):
            # Controls and positions are continuous: what is equal is fixed (the first node of a vessel), not drawn.
            assert float((train[index] == values[index]).float().mean()) < 0.35


def test_unknown_split_and_share() -> None:
    with pytest.raises(QMRIError, match="split"):
        draw(0, 1, SMALL, split="validation")
    with pytest.raises(ValueError, match="lesion_share"):
        draw(0, 1, SMALL, lesion_share=1.5)


def test_lesions_are_nested_smooth_and_of_one_side(drawn: Anatomy, painted: dict[str, Tensor]) -> None:
    oligaemia, penumbra, core = (painted[name] for name in ("oligaemia", "penumbra", "core"))
    assert bool((core <= penumbra).all()) and bool((penumbra <= oligaemia).all())
    wrong = oligaemia * (painted["hemisphere"] == -drawn.lesions.side.view(-1, 1, 1, 1))
    assert float(wrong.max()) == 0.0
    assert float(oligaemia[~painted["brain"]].max()) == 0.0
    # A rim is at least some millimetres wide: a voxel of 2 mm is no jump from nothing to all.
    inside = painted["brain"][:, 1:] & painted["brain"][:, :-1]
    same = painted["hemisphere"][:, 1:] == painted["hemisphere"][:, :-1]
    steps = (penumbra[:, 1:] - penumbra[:, :-1]).abs()[inside & same]
    steps = steps[steps > 0]
    assert float(steps.quantile(0.95)) < 0.75


def test_volume_of_a_lesion_is_the_drawn_one(drawn: Anatomy, painted: dict[str, Tensor]) -> None:
    tissue = (painted["gm"] + painted["wm"]) * VOXEL_ML
    found = (tissue * (painted["penumbra"] > 0.5)).sum((1, 2, 3))
    wanted = drawn.lesions.volume_ml
    assert bool((found <= 1.03 * wanted + 0.3).all())
    assert float((found / wanted).median()) == pytest.approx(1.0, abs=0.05)
    core = (tissue * (painted["core"] > 0.5)).sum((1, 2, 3))
    assert bool((core[drawn.lesions.core_share == 0] == 0).all())


def test_lesions_lie_in_their_territory(drawn: Anatomy, painted: dict[str, Tensor]) -> None:
    """Of a lesion within one artery's territory most is there."""
    number, shares = {"aca": 1, "pca": 3}, []
    for i in range(len(drawn)):
        leaves = [name for name, own in zip(LEAVES, drawn.lesions.leaves[i].tolist(), strict=True) if own]
        names = {number.get(leaf, 2) for leaf in leaves}
        if bool(drawn.lesions.border[i]) or len(names) > 1:
            continue
        expected = names.pop() + (0 if float(drawn.lesions.side[i]) > 0 else 3)
        lesion = painted["penumbra"][i] > 0.5
        shares.append(float((painted["territory"][i][lesion] == expected).float().mean()))
    assert len(shares) >= 4 and min(shares) > 0.6 and sum(shares) / len(shares) > 0.85


def test_lesion_share_and_volumes() -> None:
    assert float(draw(0, 50, SMALL, lesion_share=0.0).lesions.volume_ml.max()) == 0.0
    lesions = draw(0, 400, SMALL, lesion_share=0.5).lesions
    volume = lesions.volume_ml[lesions.volume_ml > 0]
    assert 0.42 < len(volume) / 400 < 0.58
    assert 2.0 <= float(volume.min()) < 6.0 and 150.0 < float(volume.max()) <= 250.0
    assert 20.0 < float(volume.median()) < 80.0
    assert 0.2 < float((lesions.core_share == 0).float().mean()) < 0.4
    assert 0.4 < float((lesions.side > 0).float().mean()) < 0.6
    assert sum(row[0] for row in KINDS.values()) == pytest.approx(1.0)


def test_without_lesion_nothing_is_painted() -> None:
    painted = paint_anatomy(draw(0, 2, SMALL, lesion_share=0.0))
    assert all(float(painted[name].max()) == 0.0 for name in ("oligaemia", "penumbra", "core"))


def test_arteries_and_veins_are_there_and_apart(painted: dict[str, Tensor]) -> None:
    artery, vein, side = painted["artery"], painted["vein"], painted["hemisphere"]
    assert not bool(((artery > 0) & (vein > 0)).any())
    good = 0
    for i in range(len(artery)):
        large = artery[i] > 0.4
        pure = (vein[i] > 0.9) & painted["brain"][i]
        in_slices = ((vein[i] > 0.5) & painted["brain"][i]).flatten(0, 1).any(0)
        good += (
            int((large & (side[i] > 0)).sum()) >= 3 and int((large & (side[i] < 0)).sum()) >= 3
            and int(pure.sum()) >= 5 and int(in_slices.sum()) >= 6
        )  # fmt: skip
    assert good >= 0.95 * len(artery)


def test_sagittal_sinus_is_on_the_midline_in_front_and_behind(painted: dict[str, Tensor]) -> None:
    sides = painted["hemisphere"]
    for i in range(len(sides)):
        x, y, z = (painted["vein"][i] > 0.6).nonzero().unbind(1)
        x, y, z = (index[z >= 3] for index in (x, y, z))  # above the transverse sinuses
        middle = (sides[i] < 0).sum(0) - 0.5  # between the last voxel of the left and the first of the right
        offset = (x - middle[y, z]).abs()
        assert float(offset.median()) < 1.6 and float(offset.quantile(0.9)) < 4.0
        # In front of the middle third of the field of view and behind it.
        assert bool((y > 80).any()) and bool((y < 30).any())


def test_hemisphere_is_the_sign_of_x(painted: dict[str, Tensor]) -> None:
    """Right is where x is high; no head is turned or shifted so far that the edges change sides."""
    side = painted["hemisphere"]
    assert bool((side[:, -15:] == 1.0).all()) and bool((side[:, :15] == -1.0).all())
    territory = painted["territory"]
    assert bool((territory[side > 0] <= 3).all())
    assert bool(((territory == 0) | (territory >= 4))[side < 0].all())
    assert set(territory.unique().tolist()) == set(range(7))


def test_textures_are_standardised(painted: dict[str, Tensor]) -> None:
    for image, brain in zip(painted["texture"], painted["brain"], strict=True):
        inside = image[:, brain]
        torch.testing.assert_close(inside.mean(1), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(inside.std(1), torch.ones(2), atol=1e-3, rtol=0)
        # Smooth: neighbours are much alike.
        both = brain[1:] & brain[:-1]
        assert float((image[:, 1:] - image[:, :-1])[:, both].std()) < 0.6


def test_bolus_comes_early_to_the_middle_cerebral_artery(painted: dict[str, Tensor]) -> None:
    kinds = painted["territory"]
    arrival = painted["arrival"]
    middle = arrival[(kinds == 2) | (kinds == 5)].mean()
    assert float(arrival[(kinds == 3) | (kinds == 6)].mean()) > float(middle) + 0.1
    assert float(arrival[(kinds == 1) | (kinds == 4)].mean()) > float(middle)


def test_distances_from_known_points() -> None:
    """A point of a leaf has distance 0 from it on both sides, and is inside of it alone."""
    place = torch.tensor([[26.0, -26.0], [2.0, 2.0], [2.0, 2.0]])
    distances = leaf_distances(place)
    deep = LEAVES.index("mca deep")
    assert float(distances[deep].max()) < 0.1
    leaves = torch.arange(len(LEAVES)) == deep
    assert float(depth_in(distances, leaves).min()) > 2.0
    assert float(depth_in(distances, ~leaves).max()) < -2.0
    assert float(border_distance(distances).min()) > 3.0


def test_mni_positions_of_the_template_and_of_other_heads() -> None:
    head = load_head(HEAD_MM)
    points = torch.tensor([[10.0, -20.0, 30.0], [-40.0, 5.0, 0.0]])
    torch.testing.assert_close(mni_to_head(points, head), points - torch.tensor(MNI_MIDDLE_MM))
    own = Head(head.fractions, 2.0 * head.voxel_size_mm, "own.nii.gz")
    torch.testing.assert_close(head_to_mni(mni_to_head(points, own), own), points, atol=1e-3, rtol=0)
    # The same brain twice as large: every structure is at twice its place.
    torch.testing.assert_close(mni_to_head(points, own), 2.0 * mni_to_head(points, head), atol=3.0, rtol=0)


@pytest.mark.parametrize("size", [(24, 28, 2), (16, 18, 3)])
def test_thin_volumes(size: tuple[int, int, int]) -> None:
    painted = paint_anatomy(draw(0, 1, (size, (8.0, 8.0, 10.0)), lesion_share=1.0))
    assert all(bool(torch.isfinite(values.float()).all()) for values in painted.values())
    assert bool(painted["brain"].any())


def test_fast(drawn: Anatomy) -> None:
    """A standard volume takes well under a second of one core."""
    begin = time.process_time()
    paint_anatomy(drawn.select(0))
    assert time.process_time() - begin < 1.0
