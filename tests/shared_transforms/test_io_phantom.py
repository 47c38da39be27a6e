"""The real NIST phantom through dcm2niix; needs ../shared/data beside the repository."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from shared_transforms.io import LoadSeriesd, find_series

PHANTOM = Path(__file__).parents[3] / "shared" / "data" / "relaxometry" / "nist_phantom"
pytestmark = pytest.mark.skipif(not PHANTOM.is_dir(), reason="../shared/data is absent")

TI = [0.05, 0.1, 0.2, 0.4, 0.6, 0.8]
IR, ME = "inversion_recovery", "multi_echo"
SERIES = {
    "T1/site1_20200218/plate5": (IR, TI, [1, 1, 1, 1.26, 1.86, 2.46], 192),
    "T1/site3_ge/plate4": (IR, TI, [1.0] * 6, 256),
    "T1/site3_ge/plate5": (IR, TI, [1.0] * 6, 256),
    "T2/site1_20200218/plate4": (ME, 0.0127 * np.arange(1, 33), None, 192),
    "T2/site3_ge/plate4": (ME, 0.00964 * np.arange(1, 9), None, 256),
    "T2/site3_ge/plate5": (ME, 0.00964 * np.arange(1, 9), None, 256),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    dcm2niix = pytest.importorskip("dcm2niix", reason="dcm2niix is an extra")
    output = tmp_path_factory.mktemp("nist")
    for name in SERIES:
        (output / name).mkdir(parents=True)
        command = [dcm2niix.bin, "-z", "y", "-o", str(output / name), str(PHANTOM / name)]
        subprocess.run(command, check=True, capture_output=True)
    return output


@pytest.mark.parametrize("name", SERIES)
def test_each_series_reads_as_acquired(converted, name):
    kind, times, repetition, matrix = SERIES[name]
    item = LoadSeriesd(kind=kind)({"image": converted / name})
    assert item["image"].shape == (len(times), matrix, matrix, 1)
    np.testing.assert_allclose(item["acquisition"]["times"], times, rtol=1e-5)
    if repetition is not None:
        np.testing.assert_allclose(item["acquisition"]["repetition_time"], repetition)
    assert item["notes"] == [] and item["stem"].startswith(name.split("/")[-1])
    assert 0 < item["image"].max() < 6000


def test_all_folders_at_once(converted):
    assert [len(s["image"]) for s in find_series(converted, IR)] == [6, 6, 6]
    assert sorted(len(s["image"]) for s in find_series(converted, ME)) == [8, 8, 32]


def test_both_kinds_and_plates_in_one_output_folder(converted, tmp_path):
    """Plates 4 and 5 of one exam, T1 and T2, converted into one folder."""
    for folder in converted.glob("*/site3_ge/*"):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert [len(s["image"]) for s in find_series(tmp_path, IR)] == [6, 6]
    assert [len(s["image"]) for s in find_series(tmp_path, ME)] == [8, 8]
