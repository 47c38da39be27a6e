"""A packed bundle is one folder that needs nothing of the repository, the same bytes each time."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from bundle_files import BundleError, Fault, read_bundle
from bundle_live import Blocked
from bundle_rules import static_faults
from bundle_zip import open_bundle
from check_bundle import check
from pack_bundle import main, pack, stage, write_zip

TREE = {
    "LICENSE",
    *(f"configs/{name}" for name in ("metadata.json", "train.json", "inference.json", "evaluate.json", "other.json")),
    *("configs/logging.conf", "docs/README.md", "docs/data_license.txt", "models/model.pt"),
    *(f"tinymap_v0_2_1/{name}.py" for name in ("__init__", "network", "physics/__init__", "physics/noise")),
    *(f"tinymap_v0_2_1/shared_transforms/{name}" for name in ("__init__.py", "errors.py", "page.html.j2")),
}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_zip_is_clean_complete_and_alone(repository: Path, tmp_path: Path) -> None:
    path = pack("tinymap", tmp_path / "out", repository)
    assert path == tmp_path / "out/tinymap_v0.2.1.zip"
    assert sorted(path.parent.iterdir()) == [path], "nothing temporary is left"
    with zipfile.ZipFile(path) as archive:
        assert {name for name in archive.namelist()} == {f"tinymap/{file}" for file in TREE}
    with open_bundle(path) as root:
        assert read_bundle(root).is_packed and static_faults(read_bundle(root)) == []


def test_packed_twice_is_the_same(repository: Path, tmp_path: Path) -> None:
    digests = []
    for time in ("one", "two"):
        root = stage(repository / "bundles/tinymap", tmp_path / time, repository)
        for file in root.rglob("*"):  # times and modes of the files do not matter
            file.chmod(0o700)
        write_zip(root, tmp_path / f"{time}.zip")
        digests.append(sha256(tmp_path / f"{time}.zip"))
        (repository / "physics/noise.py").touch()
    assert digests[0] == digests[1]


def test_two_versions_in_one_process_have_each_their_own_code(repository: Path, tmp_path: Path) -> None:
    """Both roots are on the path, as after two runs of MONAI; shared code that changed between them counts as well."""
    bundle, noise = repository / "bundles/tinymap", repository / "physics/noise.py"
    metadata, network = bundle / "configs/metadata.json", bundle / "tinymap/network.py"
    stage(bundle, tmp_path / "first", repository)
    noise.write_text(noise.read_text().replace("0.65", "0.5"))
    metadata.write_text(metadata.read_text().replace("0.2.1", "0.3.0"))
    network.write_text(network.read_text() + "\n\nclass Offset(Scale):\n    pass\n")
    stage(bundle, tmp_path / "second", repository)
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path / 'first/tinymap')!r}, {str(tmp_path / 'second/tinymap')!r}]\n"
        "import tinymap_v0_2_1.network as a\nimport tinymap_v0_3_0.network as b\n"
        "assert (a.sigma_from_snr(1), b.sigma_from_snr(1)) == (0.65, 0.5)\n"
        "assert a.Scale is not b.Scale and issubclass(b.Offset, b.Scale) and not hasattr(a, 'Offset')"
    )
    subprocess.run([sys.executable, "-P", "-c", code], cwd="/", check=True)


def test_names_in_configs_and_code_are_replaced(repository: Path, tmp_path: Path) -> None:
    root = stage(repository / "bundles/tinymap", tmp_path / "staged", repository)
    code = (root / "tinymap_v0_2_1/network.py").read_text()
    assert "from tinymap_v0_2_1.physics.noise import sigma_from_snr" in code
    train = json.loads((root / "configs/train.json").read_text())
    assert train["imports"][2] == "$from tinymap_v0_2_1.shared_transforms.errors import QMRIError"
    assert train["network_def"]["_target_"] == "tinymap_v0_2_1.network.Scale"


def test_a_bundle_with_faults_is_not_packed(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "bundles/tinymap/LICENSE").unlink()
    (repository / "bundles/tinymap/docs/README.md").unlink()
    monkeypatch.setattr("pack_bundle.REPOSITORY", repository)
    monkeypatch.setattr("pack_bundle.check", lambda root: static_faults(read_bundle(root)))
    assert main(["tinymap", "--output", str(tmp_path / "out")]) == 1
    assert not list((tmp_path / "out").iterdir())
    error = capsys.readouterr().err
    assert "LICENSE: -: is not there" in error and "docs/README.md: -: is not there" in error
    assert "tinymap: nothing is packed, 2 fault(s)" in error


@pytest.mark.parametrize("name", ["absent", "../tinymap", ""])
def test_a_name_that_is_no_bundle_is_refused(repository: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="is not a bundle(.|\n)*tinymap"):
        pack(name, tmp_path, repository)


def test_a_package_of_a_shared_name_is_refused(repository: Path, tmp_path: Path) -> None:
    (repository / "bundles/tinymap/tinymap/physics.py").touch()
    with pytest.raises(BundleError, match="stands where"):
        stage(repository / "bundles/tinymap", tmp_path / "staged", repository)


def test_a_name_that_cannot_be_replaced_is_refused(repository: Path, tmp_path: Path) -> None:
    (repository / "bundles/tinymap/tinymap/loader.py").write_text('NAME = f"physics.noise"\n')
    with pytest.raises(BundleError, match=r"tinymap/loader.py.*plain string literal"):
        stage(repository / "bundles/tinymap", tmp_path / "staged", repository)


def test_what_is_handed_on_is_checked_without_the_repository(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unpacked bundle in a zip would run here, and not on another machine."""
    seen: list[bool] = []

    def live(root: Path, isolated: bool) -> list[Fault]:
        seen.append(isolated)
        return []

    monkeypatch.setattr("check_bundle.live", live)
    bundle = repository / "bundles/tinymap"
    write_zip(bundle, tmp_path / "b.zip")
    for path in (bundle, tmp_path / "b.zip", stage(bundle, tmp_path / "staged", repository)):
        check(path)
    assert seen == [False, True, True]


def test_isolation_hides_the_shared_packages_and_nothing_else() -> None:
    for hidden in ("physics", "physics.noise", "shared_transforms.io"):
        with pytest.raises(ModuleNotFoundError, match="has its own copy"):
            Blocked().find_spec(hidden, None)
    for free in ("tinymap.physics", "physics_tools", "torch"):
        assert Blocked().find_spec(free, None) is None
