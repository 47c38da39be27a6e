"""The simulated cohort against closed forms, counts of the paper and limits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from qsmrim_net.cohort.build import simulated_cohort, simulated_subject, subject_table
from qsmrim_net.cohort.lesions import LesionMaps, add_lesions, lesion_profile
from qsmrim_net.cohort.population import KINDS, RIM_COUNTS, Lesions, draw_lesions, draw_population
from qsmrim_net.cohort.raters import cohen_kappa, draw_raters
from qsmrim_net.cohort.subject import GradientEcho, Subject, draw_subject, echoes, simulate_subject
from sklearn.metrics import cohen_kappa_score

from physics.dipole import sphere_field
from physics.phase import FREQUENCY_PER_TESLA
from shared_transforms.anatomy import split_generator

SMALL = GradientEcho(size=(64, 72, 20))


def spheres(radius: float, count: int = 1, **changes: torch.Tensor) -> Lesions:
    """Round even lesions without core, rim and vein."""
    drawn = draw_lesions(torch.Generator().manual_seed(0), 0, count)
    zero = torch.zeros(count)
    plain = {
        "radii": torch.full((count, 3), radius), "wave_height": torch.zeros(count, 4), "core": zero, "rim": zero,
        "vein": zero, "patchiness": zero, "edge": zero, "coverage": torch.ones(count), "flair": torch.ones(count),
    }  # fmt: skip
    return replace(drawn, **(plain | changes))


def maps(*size: int) -> LesionMaps:
    volumes = [torch.zeros(size) for _ in range(4)]
    return LesionMaps(*volumes, owner=torch.zeros(size, dtype=torch.int32))


@pytest.fixture(scope="module")
def subject() -> Subject:
    return simulate_subject(draw_subject(split_generator(1), 3, 12, protocol=SMALL), SMALL)


def test_counts_of_the_paper() -> None:
    assert (len(RIM_COUNTS), sum(RIM_COUNTS), RIM_COUNTS.count(0)) == (172, 177, 112)
    drawn = draw_population(torch.Generator().manual_seed(4))
    assert int(drawn.lesions.sum()) == 4163
    assert sorted(drawn.rims.tolist()) == sorted(RIM_COUNTS)
    assert int(drawn.confluent.sum()) == 7
    assert bool((drawn.lesions >= (drawn.rims + drawn.confluent).clamp_min(1)).all())


@pytest.mark.parametrize("subjects", [1, 40, 172, 300])
def test_other_numbers_of_subjects_keep_the_share_of_lesions(subjects: int) -> None:
    drawn = draw_population(torch.Generator().manual_seed(4), subjects)
    assert len(drawn.rims) == len(drawn.lesions) == subjects
    assert int(drawn.lesions.sum()) >= round(4163 * subjects / 172)
    if subjects >= 40:
        assert int(drawn.lesions.sum()) == round(4163 * subjects / 172)


def test_no_cohort_without_a_subject() -> None:
    with pytest.raises(ValueError, match="subjects must be at least 1, got 0"):
        draw_population(torch.Generator(), 0)


def test_kinds_of_many_lesions_and_sizes_of_rims() -> None:
    drawn = draw_lesions(torch.Generator().manual_seed(1), 500, 20500)
    share = torch.bincount(drawn.kind[500:], minlength=len(KINDS)).double() / 20000
    assert torch.allclose(share, torch.tensor([0.0, 0.48, 0.27, 0.08, 0.12, 0.05]).double(), atol=0.012)
    assert bool((drawn.kind[:500] == 0).all())
    assert bool((drawn.rim[drawn.kind == 0] >= 12.0).all())
    assert bool((drawn.rim[(drawn.kind > 0) & (drawn.kind < 5)] == 0).all())
    # The paper's largest rim has 15 x 20 x 5 voxels of .75 x .75 x 3 mm.
    assert float(2 * drawn.radii[:500].prod(1).pow(1 / 3).max()) < 16.0


def test_distance_of_a_sphere_is_exact() -> None:
    where = torch.randn(1, 3, 500, generator=torch.Generator().manual_seed(0)) * 4
    distance, chi, inside = lesion_profile(spheres(5.0), where)
    torch.testing.assert_close(distance, where.norm(dim=1) - 5.0, atol=2e-5, rtol=0)
    assert float(chi.abs().max()) == 0.0
    assert torch.equal(inside > 0.5, distance < 0)


def test_rim_lies_below_the_surface_and_has_its_width() -> None:
    rim, thickness = 40.0, 1.2
    lesion = spheres(6.0, rim=torch.tensor([rim]), thickness=torch.tensor([thickness]))
    along = torch.linspace(0.0, 9.0, 9001)
    chi = lesion_profile(lesion, torch.stack([along, 0 * along, 0 * along])[None])[1][0]
    peak = along[chi.argmax()]
    assert float(peak) == pytest.approx(6.0 - thickness / 2, abs=2e-3)
    half = along[chi > chi.max() / 2]
    assert float(half[-1] - half[0]) == pytest.approx(thickness, rel=2e-3)
    assert 0.65 * rim < float(chi.max()) <= rim


def test_coverage_is_the_share_of_the_surface() -> None:
    direction = torch.nn.functional.normalize(torch.randn(3, 20000, generator=torch.Generator().manual_seed(0)), dim=0)
    for share in (0.45, 0.7):
        lesion = spheres(6.0, rim=torch.tensor([40.0]), coverage=torch.tensor([share]), thickness=torch.tensor([1.0]))
        chi = lesion_profile(lesion, 5.5 * direction[None])[1][0]
        strength = chi / lesion_profile(replace(lesion, coverage=torch.tensor([50.0])), 5.5 * direction[None])[1][0]
        assert float((strength > 0.5).double().mean()) == pytest.approx(share, abs=0.01)


def test_painted_volume_is_that_of_the_ellipsoid() -> None:
    lesion = spheres(5.0, radii=torch.tensor([[5.0, 4.0, 6.0]]))
    canvas, step = maps(32, 32, 24), (0.75, 0.75, 1.0)
    add_lesions(canvas, lesion, torch.tensor([[16.2, 15.7, 12.4]]), step)
    volume = 4 / 3 * torch.pi * 5 * 4 * 6
    voxel = 0.75 * 0.75
    # A surface that fades logistically over s adds (pi s / R)^2 to the volume of a sphere.
    faded = volume * (1 + (torch.pi * 0.35 / 4.93) ** 2)
    assert float(canvas.tissue.sum()) * voxel == pytest.approx(faded, rel=0.01)
    assert float(canvas.cover.sum()) * voxel == pytest.approx(volume, rel=0.02)
    assert float(canvas.flair.sum()) == pytest.approx(float(canvas.tissue.sum()), rel=1e-5)
    assert int((canvas.owner == 1).sum()) > 0


def test_a_lesion_beyond_the_border_is_cut_not_wrapped() -> None:
    canvas = maps(24, 24, 24)
    add_lesions(canvas, spheres(4.0), torch.tensor([[0.0, 12.0, 12.0]]), (1.0, 1.0, 1.0))
    assert float(canvas.cover[14:].abs().max()) == 0.0
    # Half of the sphere, and half of the layer of voxels that the border cuts in two.
    assert float(canvas.cover.sum()) == pytest.approx(0.5 * (4 / 3 * torch.pi * 64 + torch.pi * 16), rel=0.05)


def test_each_voxel_belongs_to_the_lesion_that_covers_it_most() -> None:
    canvas = maps(48, 24, 24)
    centres = torch.tensor([[14.0, 12.0, 12.0], [32.0, 12.0, 12.0]])
    add_lesions(canvas, spheres(6.0, 2), centres, (1.0, 1.0, 1.0))
    assert canvas.owner[14, 12, 12] == 1 and canvas.owner[32, 12, 12] == 2
    apart = torch.stack(
        [
            (torch.nonzero((canvas.owner == n) & (canvas.cover > 0.01)).float() - centres[n - 1]).norm(dim=1).max()
            for n in (1, 2)
        ]
    )
    assert 5.0 < float(apart.max()) < 8.5


def test_raters_never_contradict_the_consensus_together() -> None:
    lesions = draw_lesions(torch.Generator().manual_seed(1), 177, 4163)
    said = draw_raters(torch.Generator().manual_seed(2), lesions)
    rim = lesions.kind == 0
    assert bool((said[rim].sum(1) >= 1).all())
    assert bool((said[~rim].sum(1) <= 1).all())
    assert cohen_kappa(said) == pytest.approx(0.59, abs=0.05)
    assert cohen_kappa(said) == pytest.approx(cohen_kappa_score(*said.T.numpy()), abs=1e-12)


def test_kappa_of_agreement_by_chance_alone_is_zero() -> None:
    said = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    assert cohen_kappa(said) == pytest.approx(0.0, abs=1e-12)
    assert cohen_kappa(torch.tensor([[0, 0], [1, 1]])) == 1.0


def test_phase_of_the_echoes_is_that_of_the_sphere_in_it() -> None:
    protocol = GradientEcho(size=(48, 48, 16), snr=(1e6, 1e6), slices=3, voxel_size=(1.0, 1.0, 3.0))
    drawn = draw_subject(split_generator(0), 0, 1, protocol=protocol)
    size, step, radius = (48, 48, 48), 1.0, 9.0
    where = [(torch.arange(n) - (n - 1) / 2) * step for n in size]
    away = torch.cartesian_prod(*where)
    canvas = maps(*size)
    distance = away.norm(dim=1).view(size)
    canvas.chi.copy_(100.0 * (radius + 0.5 - distance).clamp(0.0, 1.0))
    tissue = torch.zeros(3, *size)
    tissue[2] = 1.0
    signal, brain = echoes(drawn, protocol, tissue, canvas, torch.zeros(size), torch.Generator().manual_seed(0))
    assert bool(brain.all())
    turn = torch.angle(signal[1] * signal[0].conj()) / (2 * torch.pi * 0.0041)
    field = sphere_field(away.double(), radius, susceptibility=0.1).view(size).float()
    expected = FREQUENCY_PER_TESLA * 3.0 * field.unflatten(2, (16, 3)).mean(3)
    far = (distance.unflatten(2, (16, 3)) > radius + 3).all(3)
    torch.testing.assert_close(turn[far], expected[far], atol=0.06, rtol=0.05)
    decay = signal[1].abs()[far] / signal[0].abs()[far]
    assert float(decay.median()) == pytest.approx(float(torch.exp(torch.tensor(-0.0041 * 21.0))), rel=2e-3)


def test_same_draw_same_examination_and_other_seed_another(subject: Subject) -> None:
    again = simulate_subject(draw_subject(split_generator(1), 3, 12, protocol=SMALL), SMALL)
    assert torch.equal(subject.qsm, again.qsm) and torch.equal(subject.labels, again.labels)
    other = simulate_subject(draw_subject(split_generator(2), 3, 12, protocol=SMALL), SMALL)
    assert not torch.equal(subject.qsm, other.qsm)


def test_every_lesion_has_voxels_in_the_brain_and_the_map_follows_the_truth(subject: Subject) -> None:
    assert torch.equal(subject.labels.unique(), torch.arange(13, dtype=torch.int32))
    assert float(subject.qsm[~subject.brain].abs().max()) == 0.0
    assert float(subject.flair[~subject.brain].abs().max()) == 0.0
    both = torch.stack([subject.qsm[subject.brain], subject.truth[subject.brain]])
    assert float(torch.corrcoef(both)[0, 1]) > 0.8
    brighter = subject.flair[subject.labels > 0].mean() / subject.flair[subject.brain].mean()
    assert float(brighter) > 1.1


def test_less_noise_brings_the_map_nearer_to_the_truth() -> None:
    errors = []
    for snr in (5.0, 50.0):
        protocol = replace(SMALL, snr=(snr, snr))
        found = simulate_subject(draw_subject(split_generator(3), 1, 6, protocol=protocol), protocol)
        difference = (found.qsm - found.truth)[found.brain]
        errors.append(float(difference.std()))
    assert errors[1] < 0.8 * errors[0]


def test_table_has_a_row_for_every_lesion(subject: Subject) -> None:
    table = subject_table(subject, 7, (24, 24, 8))
    assert len(table) == 12
    assert table.label.tolist() == [1] * 3 + [0] * 9
    assert table.voxels.tolist() == torch.bincount(subject.labels.flatten())[1:].tolist()
    assert table.image.shape == (12, 2, 24, 24, 8)
    assert bool(table.features[table.status == 0].isfinite().all())


def test_cohort_is_kept_and_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    arguments = {"seed": 3, "subjects": 2, "cache_dir": tmp_path, "protocol": SMALL}
    made = simulated_cohort(**arguments)
    (kept,) = tmp_path.iterdir()
    before = kept.stat().st_mtime_ns
    assert torch.equal(simulated_cohort(**arguments).features, made.features) or bool(made.features.isnan().any())
    assert kept.stat().st_mtime_ns == before
    # As if it had been killed after the first subject, and the second made by another process.
    kept.unlink()
    first = subject_table(simulated_subject(3, 0, 2, protocol=SMALL), 0, (24, 24, 8))
    first.save(kept.with_suffix("") / "subject-0000.pt")
    again = simulated_cohort(**arguments, processes=2)
    for name in ("image", "label", "raters", "voxels", "subject"):
        assert torch.equal(getattr(again, name), getattr(made, name)), name
    torch.testing.assert_close(again.features, made.features, equal_nan=True, atol=0, rtol=1e-9)
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


def test_cohorts_of_other_splits_are_others() -> None:
    heads = [
        draw_subject(split_generator(0, split=split), 1, 4, split=split, protocol=SMALL) for split in ("train", "test")
    ]
    assert not torch.equal(heads[0].volumes.displacement, heads[1].volumes.displacement)
