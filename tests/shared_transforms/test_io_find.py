"""Folders as dcm2niix, BIDS and people leave them."""

import json

import numpy as np
import pytest

from shared_transforms.errors import QMRIError
from shared_transforms.io import LoadSeriesd, find_series

IR, ME = "inversion_recovery", "multi_echo"
SCAN = {"MagneticFieldStrength": 1.5, "ScanningSequence": "SE\\IR"}


def found(series, kind):
    return {s["stem"]: len(s["image"]) for s in find_series(series.folder, kind)}


def test_dcm2niix_one_series_number_for_each_inversion_time(series):
    """TR, series number and description follow TI on real scanners."""
    times, repetitions = (0.8, 0.05, 0.4), (2.46, 1.0, 1.26)
    for i, (ti, tr) in enumerate(zip(times, repetitions, strict=True)):
        series.inversion_recovery(
            times=(ti,), tr=tr, name=f"plate5_Anon_20200218_{i + 2}.nii.gz", SeriesNumber=i + 2,
            SeriesDescription=f"TI{ti}", AcquisitionTime=f"08:4{i}", SAR=0.1 * i, **SCAN,
        )  # fmt: skip
    (only,) = find_series(series.folder, IR)
    assert only["stem"] == "plate5_Anon_20200218"
    assert [p[-8] for p in only["image"]] == ["3", "4", "2"]
    item = LoadSeriesd(kind=IR)(only)
    np.testing.assert_allclose(item["acquisition"]["repetition_time"], [1.0, 1.26, 2.46])
    assert item["stem"] == "plate5_Anon_20200218"


def test_dcm2niix_one_file_for_each_echo(series):
    series.multi_echo(times=np.arange(1, 13) * 0.01, name="T2map_38_e{i}.nii.gz", SeriesNumber=38)
    assert found(series, ME) == {"T2map_38": 12}
    image = LoadSeriesd(kind=ME)({"image": series.folder})["image"]
    np.testing.assert_array_equal(image[11].numpy(), series.values(11))  # e12 after e2: by time, not by name


def test_single_echo_series_of_rising_series_numbers(series):
    for i in range(3):
        series.multi_echo(times=(0.01 * (i + 1),), name=f"se_{i + 4}.nii.gz", SeriesNumber=i + 4)
    assert found(series, ME) == {"se": 3}


@pytest.mark.parametrize("name", ["scan_TI{t}_{n}", "{n}_IR_{t}", "IR_{t}ms_{n}", "{n}_TI-{t}ms", "ir_{t}"])
def test_times_in_names_do_not_part_a_series(series, name):
    for i, t in enumerate((50, 400, 1000)):
        fields = {"SeriesNumber": i + 2} if "{n}" in name else {}
        series.inversion_recovery(times=(t / 1000,), name=name.format(t=t, n=i + 2) + ".nii.gz", **fields)
    assert list(found(series, IR).values()) == [3]


def test_two_objects_of_one_exam_stay_apart(series):
    for plate in (4, 5):
        for i in range(3):
            series.inversion_recovery(
                times=(0.1 * (i + 1) + 0.01 * plate,), name=f"plate{plate}_x_{i + 30}.nii.gz", SeriesNumber=i + 30
            )
    assert found(series, IR) == {"plate4_x": 3, "plate5_x": 3}


def test_repeated_scans_are_told_apart_by_series_number(series):
    for n in range(6):
        series.inversion_recovery(times=((0.1, 0.2, 0.3)[n % 3],), name=f"ir_{n + 2}.nii.gz", SeriesNumber=n + 2)
    assert found(series, IR) == {"ir_2": 3, "ir_5": 3}
    for number in (8, 9):
        series.multi_echo(name=f"me_{number}_e{{i}}.nii.gz", SeriesNumber=number)
    assert found(series, ME) == {"me_8": 3, "me_9": 3}


def test_both_kinds_in_one_folder(series):
    series.inversion_recovery(name="x_1_{i}.nii.gz", ScanningSequence="IR")
    series.multi_echo(name="x_38_e{i}.nii.gz", SeriesNumber=38, ScanningSequence="SE")
    assert found(series, IR) == {"x_1": 4}
    assert found(series, ME) == {"x_38": 3}


def test_bids_names_in_nested_folders_with_inherited_fields(series):
    for subject in ("01", "02"):
        stem = f"sub-{subject}/ses-a/anat/sub-{subject}_ses-a_run-1"
        series.inversion_recovery(name=stem + "_inv-{i}_IRT1.nii.gz", tr=None)
        series.multi_echo(name=stem + "_echo-{i}_MESE.nii.gz")
        series.multi_echo(name=stem + "_echo-{i}_MEGRE.nii.gz")
        series.image(stem + "_T1w.nii.gz", series.values(), {"InversionTime": 0.9, "EchoTime": 0.003})
    (series.folder / "IRT1.json").write_text(json.dumps({"RepetitionTime": 8.0}))
    (series.folder / "sub-02" / "sub-02_IRT1.json").write_text(json.dumps({"RepetitionTime": 6.0}))
    assert found(series, IR) == {"sub-01_ses-a_run-1": 4, "sub-02_ses-a_run-1": 4}
    assert found(series, ME) == {"sub-01_ses-a_run-1": 3, "sub-02_ses-a_run-1": 3}
    first, second = (LoadSeriesd(kind=IR)(s)["acquisition"]["repetition_time"] for s in find_series(series.folder, IR))
    assert first.tolist() == [8.0] * 4 and second.tolist() == [6.0] * 4


def test_4d_files_and_a_single_file(series):
    path = series.four_d((0.1, 0.2, 0.3), name="sub-01_IRT1.nii.gz")
    series.four_d((0.1, 0.2, 0.3), name="other.nii")
    assert set(found(series, IR)) == {"sub-01", "other"}
    assert [s["stem"] for s in find_series(path, IR)] == ["sub-01"]


def test_equal_names_in_several_folders_get_the_folder_in_front(series):
    for subject in ("anna", "ben"):
        series.inversion_recovery(name=subject + "/ir_{i}.nii.gz")
    assert found(series, IR) == {"anna_ir": 4, "ben_ir": 4}


def test_series_of_equal_name_and_folder_are_numbered(series):
    for i, te in enumerate((0.01, 0.02)):
        series.inversion_recovery(name=f"ir_{{i}}{'ab'[i]}.nii.gz", EchoTime=te)
    assert found(series, IR) == {"ir_1": 4, "ir_2": 4}


def test_other_contrasts_and_maps_are_left_out(series):
    series.inversion_recovery()
    mprage = {"InversionTime": 0.9, "EchoTime": 0.003, "ScanningSequence": "GR\\IR"}
    series.image("mprage.nii.gz", series.values(), mprage)
    series.image("t2.nii.gz", series.values(), {"EchoTime": 0.1})
    series.image("scanner.nii.gz", series.values(), {"EchoTime": 0.1, "ImageType": ["DERIVED", "T2 MAP"]})
    series.image("ir_T1map.nii.gz", series.values(), {"EstimationMethod": "x", "Units": "s"})
    series.four_d((0.1, 0.2, 0.3), name="derived/maps/x.nii.gz")
    (series.folder / "derived" / "dataset_description.json").write_text('{"DatasetType": "derivative"}')
    bold = np.stack([series.values()] * 5, -1)
    series.image("bold.nii.gz", bold, {"EchoTime": 0.03, "RepetitionTime": 2})
    (series.folder / ".hidden").mkdir()
    assert found(series, IR) == {"ir": 4}
    with pytest.raises(QMRIError, match="gradient echo|1 x a 4-D file with one EchoTime"):
        find_series(series.folder, ME)


def test_phase_images_are_skipped_with_a_note(series):
    series.multi_echo()
    series.multi_echo(name="me_8_e{i}_ph.nii.gz", ImageType=["ORIGINAL", "PRIMARY", "P", "ND", "PHASE"])
    (only,) = find_series(series.folder, ME)
    assert len(only["image"]) == 3 and "me_8_e1_ph.nii.gz" in only["notes"][0]
    assert LoadSeriesd(kind=ME)({"image": series.folder})["notes"] == only["notes"]


def test_an_empty_result_says_what_there_is(series):
    series.image("t1.nii.gz", series.values(), {"EchoTime": 0.003})
    series.inversion_recovery(times=(0.1, 0.2), name="short_{i}.nii.gz")
    with pytest.raises(QMRIError) as caught:
        find_series(series.folder, IR)
    assert caught.value.field == "dataset_dir" and caught.value.file == str(series.folder)
    assert "3 NIfTI file(s)" in caught.value.found
    assert "2 x 2 image(s) with InversionTime, 3 needed" in caught.value.found
    assert "1 x no InversionTime" in caught.value.found
    assert "at least 3" in caught.value.expected and "dcm2niix" in caught.value.remedy


def test_a_folder_of_dicom_files_and_a_missing_folder(series):
    series.folder.mkdir()
    (series.folder / "IM0001").write_bytes(b"DICM")
    with pytest.raises(QMRIError, match="no NIfTI file among 1 file"):
        find_series(series.folder, IR)
    with pytest.raises(QMRIError, match="no such folder"):
        find_series(series.folder / "absent", IR)
    with pytest.raises(QMRIError, match="one of"):
        find_series(series.folder, "t1")


def test_images_without_any_sidecar_name_the_sidecar(series):
    series.image("series.nii.gz", series.values(), None)
    with pytest.raises(QMRIError) as caught:
        find_series(series.folder, IR)
    assert caught.value.field == "JSON sidecar" and caught.value.file.endswith("series.nii.gz")
