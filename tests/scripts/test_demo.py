"""The demonstration: what it simulates, writes, runs and compares."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import demo
import demos
import nibabel as nib
import numpy as np
import pytest
import torch
from demos import deepspio, qsmgan, qsmrim_net, stnet_perfusion
from demos import rim_relaxometry as rim
from qsmgan.network import Generator
from rim_relaxometry.network import RecurrentInferenceMachine

from shared_transforms.io import (
    LoadLesionMapsd,
    find_gradient_echoes,
    find_lesion_maps,
    find_perfusion_series,
    find_series,
    find_view_lines,
    load_gradient_echoes,
    load_perfusion_series,
    load_series,
    load_view_line,
)

SIZE, SLICES = 40, 2


@pytest.fixture(scope="module")
def scans() -> list[rim.Scan]:
    return rim.simulate(SLICES, SIZE)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights: the network then is a damped Gauss-Newton method, good enough to compare with the truth."""
    folder = tmp_path_factory.mktemp("models")
    for parameter, name in rim.MODELS.items():
        torch.manual_seed(0)
        torch.save(RecurrentInferenceMachine(parameter, [0.1, 0.2, 0.3]).state_dict(), folder / name)
    return folder


def test_both_scans_see_one_head(scans: list[rim.Scan]) -> None:
    t1, t2 = scans
    np.testing.assert_array_equal(t1.fractions, t2.fractions)
    assert t1.series.shape == (len(rim.INVERSION_TIMES), SIZE, SIZE, SLICES)
    assert t2.series.shape == (len(rim.ECHO_TIMES), SIZE, SIZE, SLICES)


def test_neighbouring_slices_differ_but_resemble_each_other(scans: list[rim.Scan]) -> None:
    first, second = np.moveaxis(scans[0].fractions[:3].sum(0) > 0.5, -1, 0)
    overlap = (first & second).sum() / (first | second).sum()
    assert 0.7 < overlap < 1.0


def test_tissues_have_the_values_of_the_paper(scans: list[rim.Scan]) -> None:
    for scan, expected in zip(scans, ({"grey": 1.4, "white": 0.78}, {"grey": 0.11, "white": 0.08}), strict=True):
        white = scan.fractions[2] > 0.98
        assert np.median(scan.truth[white]) == pytest.approx(expected["white"], rel=0.05)


def test_equal_seeds_give_equal_scans_and_others_do_not(scans: list[rim.Scan]) -> None:
    again = rim.simulate(SLICES, SIZE)[0]
    np.testing.assert_array_equal(again.series, scans[0].series)
    assert not np.array_equal(rim.simulate(SLICES, SIZE, seed=9)[0].fractions, scans[0].fractions)


def test_written_scans_are_read_back_as_series(scans: list[rim.Scan], tmp_path: Path) -> None:
    for scan, kind, stem in zip(scans, ("inversion_recovery", "multi_echo"), ("sub-demo",) * 2, strict=True):
        files = rim.write_scan(scan, tmp_path / scan.parameter)
        assert len(files) == len(scan.times)
        [series] = find_series(tmp_path / scan.parameter, kind)
        assert series["stem"] == stem
        loaded = load_series(series["image"], kind)
        assert loaded["acquisition"]["times"].tolist() == pytest.approx(list(scan.times))
        np.testing.assert_allclose(loaded["image"].numpy(), rim.SCALE * scan.series, atol=0.51)  # whole numbers
        np.testing.assert_allclose(loaded["image"].affine, scan.affine, atol=1e-4)
        sidecar = json.loads(files[0].with_name(files[0].name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["RepetitionTime"] == rim.REPETITION_TIME


def test_comparison_of_a_known_error(scans: list[rim.Scan], tmp_path: Path) -> None:
    scan = scans[0]
    maps = {"T1map": 1.1 * scan.truth, "T1stderr": 0.06 * scan.truth, "mask": np.ones_like(scan.truth)}
    for suffix, data in maps.items():
        nib.save(nib.Nifti1Image(data.astype(np.float32), scan.affine), tmp_path / f"sub-demo_{suffix}.nii.gz")
    rows = rim.compare(scan, tmp_path)
    assert [row.tissue for row in rows] == list(rim.TISSUES)
    for row in rows:
        assert row.bias == pytest.approx(10.0, abs=1e-3)
        assert row.error == pytest.approx(10.0, abs=1e-3)
        assert row.coverage == 100.0  # 0.10 < 1.96 * 0.06
        assert row.estimate == pytest.approx(1.1 * row.truth)
    assert "+10.0 %" in rim.table(rows)


def test_command_is_one_that_a_user_can_type() -> None:
    command = rim.command_for("T2", Path("/scans"), Path("/maps"))
    assert shlex.split(demos.as_text(command).replace("\\\n", "")) == command
    configs = json.loads(command[command.index("--config_file") + 1])
    assert [Path(config).name for config in configs] == ["inference.json", "t2.json"]
    assert all(Path(config).is_file() for config in configs)


def test_a_failed_inference_ends_the_demo() -> None:
    with pytest.raises(SystemExit, match="status 3"):
        demos.run_inference([sys.executable, "-c", "raise SystemExit(3)"])


def test_whole_demo(models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "overview.png"
    arguments = ["--bundle", "rim_relaxometry", "--output", str(tmp_path / "demo"), "--models", str(models)]
    assert demo.main([*arguments, "--scale", "0.25", "--picture", str(picture)]) == 0
    printed = capfd.readouterr().out
    for parameter in ("T1", "T2"):
        folder = tmp_path / "demo" / "rim_relaxometry" / "maps" / parameter / "sub-demo"
        assert (folder / f"sub-demo_{parameter}map.nii.gz").is_file()
        assert (folder / "report.html").is_file()
        assert str(folder / "report.html") in printed
        lines = [line for line in printed.splitlines() if line.startswith(f"{parameter}   ")]
        assert len(lines) == len(rim.TISSUES)
        errors = [float(line.split("%")[0].split()[-1]) for line in lines]
        assert max(map(abs, errors)) < 10.0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def echoes() -> qsmgan.Scan:
    return qsmgan.simulate(0.3)


def test_phase_grows_with_time_by_the_field(echoes: qsmgan.Scan) -> None:
    """Deep inside of a head, where the field of the air is smooth, echoes are evenly turned."""
    turned = np.angle(np.exp(1j * np.diff(echoes.phase, axis=0)))
    strong = echoes.mask & (echoes.magnitude[-1] > 0.4)
    spread = np.abs(np.angle(np.exp(1j * np.diff(turned, axis=0))))[:, strong]
    assert np.median(spread) < 0.1
    assert np.median(np.abs(turned[:, ~echoes.mask])) > 1.0  # noise
    assert echoes.magnitude[0][echoes.mask].mean() == pytest.approx(1.0, abs=0.05)


def test_the_truth_has_the_susceptibilities_of_the_simulator(echoes: qsmgan.Scan) -> None:
    assert echoes.truth[echoes.mask].mean() == pytest.approx(0.0, abs=1e-5)
    white, fluid = (np.median(echoes.truth[echoes.labels == label]) for label in (3, 1))
    assert fluid - white == pytest.approx(0.035, abs=0.02)


def test_the_background_has_no_source_in_the_brain(echoes: qsmgan.Scan) -> None:
    field = qsmgan.background(torch.from_numpy(echoes.mask)).double().numpy()
    laplacian = sum(np.roll(field, 1, axis) + np.roll(field, -1, axis) - 2 * field for axis in range(3))
    inner = (slice(1, -1),) * 3  # beyond, np.roll takes the other end
    laplacian, field, mask = laplacian[inner], field[inner], echoes.mask[inner]
    assert np.abs(laplacian[mask]).max() < 0.02 * np.abs(field[mask]).max()


def test_written_echoes_are_read_back(echoes: qsmgan.Scan, tmp_path: Path) -> None:
    files = qsmgan.write_scan(echoes, tmp_path)
    assert len(files) == 2 * len(qsmgan.ECHO_TIMES)
    [series] = find_gradient_echoes(tmp_path)
    assert series["stem"] == "sub-demo"
    loaded = load_gradient_echoes(series["image"], series["phase"], mask=series["mask"])
    count = len(qsmgan.ECHO_TIMES)
    assert loaded["acquisition"]["echo_times"].tolist() == pytest.approx(list(qsmgan.ECHO_TIMES))
    assert float(loaded["acquisition"]["field_strength"]) == qsmgan.FIELD_STRENGTH
    difference = np.angle(np.exp(1j * (loaded["image"][count:].numpy() - echoes.phase)))
    assert np.abs(difference).max() < 2e-3
    assert (loaded["mask"].numpy()[0] == echoes.mask).all()


def test_comparison_of_maps_of_a_known_error(echoes: qsmgan.Scan, tmp_path: Path) -> None:
    for suffix, volume in (("Chimap", 0.9 * echoes.truth + 0.3), ("mask", echoes.mask)):
        demos.write_image(tmp_path / f"sub-demo_{suffix}.nii.gz", volume.astype(np.float32), echoes.affine)
    rows, error = qsmgan.compare(echoes, tmp_path)
    assert error == pytest.approx(10.0, rel=1e-3)
    assert {"putamen", "white matter"} <= {row.structure for row in rows}
    for row in rows:
        assert row.estimate == pytest.approx(0.9 * row.truth, abs=1e-4)
    assert "NRMSE of the whole map: 10.0 %" in qsmgan.table(rows, error)


def test_whole_demo_of_qsmgan(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = json.loads((demo.REPOSITORY / "bundles/qsmgan/configs/inference.json").read_text())
    network = Generator(config["channels"], config["width"], normalisation=config["normalisation"], crop=config["crop"])
    torch.save(network.state_dict(), tmp_path / "model.pt")  # untrained it is the starting map
    picture = tmp_path / "overview.png"
    arguments = ["--bundle", "qsmgan", "--output", str(tmp_path / "demo"), "--models", str(tmp_path)]
    assert demo.main([*arguments, "--scale", "0.4", "--picture", str(picture)]) == 0
    printed = capfd.readouterr().out
    folder = tmp_path / "demo" / "qsmgan" / "maps" / "sub-demo"
    assert str(folder / "report.html") in printed
    assert (folder / "sub-demo_Chimap.nii.gz").is_file()
    [error] = [float(line.split()[-2]) for line in printed.splitlines() if line.startswith("NRMSE")]
    assert error < 80.0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def bolus() -> stnet_perfusion.Scan:
    return stnet_perfusion.simulate(0.4)


def test_the_bolus_passes_the_brain_and_leaves_a_stroke(bolus: stnet_perfusion.Scan) -> None:
    mean = bolus.signal[bolus.mask].mean(0)
    baseline = np.median(mean[1:6])
    assert 0.4 < mean.min() / baseline < 0.8
    assert baseline == pytest.approx(stnet_perfusion.AMPLITUDE, rel=0.1)
    late = bolus.tissue & (bolus.truth["Tmax"] > stnet_perfusion.HYPOPERFUSED)
    assert 0.05 < late.sum() / bolus.tissue.sum() < 0.6
    assert np.median(bolus.truth["CBF"][late]) < np.median(bolus.truth["CBF"][bolus.tissue & ~late])


def test_a_written_bolus_is_read_back(bolus: stnet_perfusion.Scan, tmp_path: Path) -> None:
    stnet_perfusion.write_scan(bolus, tmp_path)
    [series] = find_perfusion_series(tmp_path)
    assert series["stem"] == "sub-demo"
    loaded = load_perfusion_series(series["image"])
    assert float(loaded["acquisition"]["repetition_time"]) == bolus.repetition_time
    assert float(loaded["acquisition"]["echo_time"]) == pytest.approx(bolus.echo_time)
    np.testing.assert_allclose(np.moveaxis(loaded["image"].numpy(), 0, -1), bolus.signal, atol=0.51)  # whole numbers
    np.testing.assert_allclose(loaded["image"].affine, bolus.affine, atol=1e-4)


def test_comparison_of_perfusion_maps_of_a_known_error(bolus: stnet_perfusion.Scan, tmp_path: Path) -> None:
    offsets = {"CBV": 0.5, "CBF": -4.0, "Tmax": 100.0}  # all is late
    for name, offset in offsets.items():
        values = (bolus.truth[name] + offset).astype(np.float32)
        demos.write_image(tmp_path / f"sub-demo_{name.lower()}.nii.gz", values, bolus.affine)
    demos.write_image(tmp_path / "sub-demo_mask.nii.gz", bolus.mask.astype(np.uint8), bolus.affine)
    found = stnet_perfusion.compare(bolus, tmp_path, "oSVD")
    assert found.errors == pytest.approx({name: abs(offset) for name, offset in offsets.items()}, rel=1e-3)
    voxel_ml = abs(np.linalg.det(bolus.affine[:3, :3])) / 1000
    assert found.volume_ml == pytest.approx(voxel_ml * bolus.tissue.sum())
    assert found.dice == pytest.approx(2 * found.true_volume_ml / (found.true_volume_ml + found.volume_ml))
    assert "oSVD" in stnet_perfusion.table([found])


def test_whole_demo_of_stnet_perfusion(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "overview.png"
    arguments = ["--bundle", "stnet_perfusion", "--output", str(tmp_path / "demo"), "--scale", "0.4"]
    assert demo.main([*arguments, "--picture", str(picture)]) == 0
    printed = capfd.readouterr().out
    for method in stnet_perfusion.METHODS:
        folder = tmp_path / "demo" / "stnet_perfusion" / "maps" / method / "sub-demo"
        assert str(folder / "report.html") in printed
        assert (folder / "sub-demo_tmax.nii.gz").is_file()
        [line] = [line for line in printed.splitlines() if line.startswith(f"{method}  ")]
        assert float(line.split()[-1]) > 0.5, "Dice"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def lines() -> deepspio.Scan:
    return deepspio.simulate(0.5)


def test_written_lines_are_read_back(lines: deepspio.Scan, tmp_path: Path) -> None:
    deepspio.write_scan(lines, tmp_path)
    [image] = find_view_lines(tmp_path)
    assert image["stem"] == "sub-demo"
    loaded = load_view_line(image["image"], pixel_size_mm=lines.pixel, echo_time_s=0.0087)
    stored = deepspio.AMPLITUDE * np.moveaxis(lines.lines, -1, 0)
    np.testing.assert_allclose(loaded["image"].numpy(), stored, atol=0.51)  # whole numbers
    np.testing.assert_array_equal(loaded["plane"].numpy(), loaded["image"].numpy()[:, ::-1, :, 0])  # to the right


def test_the_lines_alternate_and_are_lost_among_the_particles(lines: deepspio.Scan) -> None:
    even, odd = np.moveaxis(lines.lines[:, :, 0], -1, 0)
    assert np.corrcoef(even.ravel(), odd.ravel())[0, 1] < 0
    inside = lines.truth[:, :, 0] > 0
    assert np.median((even + odd)[inside]) < 0.3 * np.percentile(even + odd, 75)
    assert lines.truth.max() == pytest.approx(deepspio.CONCENTRATION, rel=1e-6)


def test_comparison_of_maps_of_particles_of_a_known_error(lines: deepspio.Scan, tmp_path: Path) -> None:
    demos.write_image(tmp_path / "sub-demo_concentration.nii.gz", (0.75 * lines.truth).astype(np.float32), lines.affine)
    found = deepspio.compare(lines, tmp_path, "DeepSPIO")
    assert found.nmae == pytest.approx(0.25, rel=1e-5)
    assert (found.mean, found.iron) == pytest.approx((0.75 * found.true_mean, 0.75 * found.true_iron))
    pixels = int((lines.truth > 0).sum())
    assert found.true_iron == pytest.approx(pixels * found.true_mean * lines.pixel**2)
    assert "0.250" in deepspio.table([found])


def test_whole_demo_of_deepspio(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "overview.png"
    arguments = ["--bundle", "deepspio", "--output", str(tmp_path / "demo"), "--scale", "0.5"]
    assert demo.main([*arguments, "--picture", str(picture)]) == 0
    printed = capfd.readouterr().out
    nmae = {}
    for method in deepspio.METHODS:
        folder = tmp_path / "demo" / "deepspio" / "maps" / method.replace(" ", "_") / "sub-demo"
        assert str(folder / "report.html") in printed
        assert (folder / "sub-demo_concentration.nii.gz").is_file()
        [line] = [line for line in printed.splitlines() if line.startswith(f"{method}  ")]
        nmae[method] = float(line.split()[-5])
    assert nmae["DeepSPIO"] < 1.0, "better than a map of zeros"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def patient() -> Any:
    return qsmrim_net.simulate(0.3)


def test_written_maps_of_a_patient_are_read_back(patient: Any, tmp_path: Path) -> None:
    qsmrim_net.write_scans(patient, tmp_path)
    [found] = find_lesion_maps(tmp_path)
    volumes = LoadLesionMapsd(keys="image")(found)["image"]
    expected = torch.stack([patient.qsm, patient.flair, patient.labels]).flip(1)  # stored from right to left
    torch.testing.assert_close(volumes.as_tensor()[0], expected[0], rtol=1e-5, atol=1e-4)  # ppb
    torch.testing.assert_close(volumes.as_tensor()[1:], expected[1:], rtol=0, atol=0.51)  # whole numbers
    centre = volumes.affine[:3] @ torch.tensor([*(0.5 * (n - 1) for n in patient.qsm.shape), 1.0]).double()
    torch.testing.assert_close(centre, torch.zeros(3).double())
    assert volumes.affine.diagonal()[:3].tolist() == [-0.75, 0.75, 3.0]


def test_written_echoes_of_a_patient_are_read_back(patient: Any, tmp_path: Path) -> None:
    qsmrim_net.write_echoes(patient, tmp_path)
    [series] = find_gradient_echoes(tmp_path)
    steps = qsmrim_net.PHASE_STEPS
    loaded = load_gradient_echoes(series["image"], series["phase"], mask=series["mask"], phase_range=(-steps, steps))
    magnitude, phase = loaded["image"].as_tensor().chunk(2)
    echoes = patient.echoes.flip(1)
    strong = echoes.abs() > 0.1 * echoes.abs().max()
    turned = torch.polar(torch.ones_like(phase), phase) / torch.sgn(echoes)
    assert turned[strong].angle().abs().max() < 2 * np.pi / steps
    scale = qsmrim_net.AMPLITUDE / echoes[0].abs().max()
    torch.testing.assert_close(magnitude, scale * echoes.abs(), rtol=0, atol=0.51)
    assert loaded["acquisition"]["echo_times"].tolist() == pytest.approx([0.0063 + 0.0041 * n for n in range(10)])
    assert (loaded["mask"][0] == patient.brain.flip(0)).all()


def test_lesions_of_a_table_are_compared_with_the_truth(patient: Any, tmp_path: Path) -> None:
    """Two of five rims found, one lesion without a rim taken for one; three to review, two of them rims."""
    rims = qsmrim_net.true_rims(patient)
    assert sum(rims) == qsmrim_net.RIMS and len(rims) == len(patient.lesions)
    with_rim, without = ([n + 1 for n, rim in enumerate(rims) if rim is wanted] for wanted in (True, False))
    said = {with_rim[0], with_rim[1], without[0]}
    rows = [f"{n},{int(n in said)},{int(n in said)}" for n in range(1, len(rims) + 1)]
    text = "\n".join(["lesion,rim,above_high_sensitivity_threshold", *rows])
    (tmp_path / "sub-demo_lesions.csv").write_text(text)
    found = qsmrim_net.compare(patient, tmp_path, "QSMRim-Net")
    assert found == qsmrim_net.Comparison("QSMRim-Net", len(rims), 5, 2, 1, 3, 2)
    numbers = [len(rims), 5, 2, 1, 3, 2]
    assert qsmrim_net.table([found]).splitlines()[1].split() == ["QSMRim-Net", *map(str, numbers)]
    shown = qsmrim_net.window(patient)
    assert (qsmrim_net.true_classes(patient)[shown] == 2).any()


def test_whole_demo_of_qsmrim_net(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "overview.png"
    arguments = ["--bundle", "qsmrim_net", "--output", str(tmp_path / "demo"), "--scale", "0.4"]
    assert demo.main([*arguments, "--picture", str(picture)]) == 0
    printed = capfd.readouterr().out
    for method in [*qsmrim_net.METHODS, qsmrim_net.CHAIN]:
        folder = tmp_path / "demo" / "qsmrim_net" / "maps" / qsmrim_net.plain(method) / "sub-demo"
        assert str(folder / "report.html") in printed
        assert (folder / "sub-demo_desc-rim_dseg.nii.gz").is_file()
        [line] = [line for line in printed.splitlines() if line.startswith(f"{method}  ")]
        lesions, rims, found, false, _, _ = map(int, line.split()[-6:])
        assert rims == qsmrim_net.RIMS and found + false <= lesions
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_only_bundles_with_weights_are_shown() -> None:
    assert demo.is_ready("rim_relaxometry")
    assert not demo.is_ready("no_such_bundle")
