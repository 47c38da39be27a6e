"""The packed bundles in a real MONAI Label server: what comes back is what the bundle itself writes."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import requests
from bundle_files import REPOSITORY, bundle_names
from bundle_zip import open_bundle
from monai_label import ENVIRONMENT, VARIANTS, build_app, set_up
from pack_bundle import stage, write_zip

from ..bundles.known_inputs import RUNS, from_centres, lesion_maps, rims

pytestmark = [pytest.mark.label, pytest.mark.xdist_group("label")]

BUNDLES = bundle_names()
TOLERANCE = 1e-6  # of the largest absolute value of the map
ECHO_TIMES = [0.006, 0.012, 0.018, 0.024]
START_S, ANSWER_S = 900, 900  # of a loaded machine


@dataclass(frozen=True)
class Request:
    """One request and how the bundle makes the same by itself.

    Attributes:
        model: name in the server.
        image: name of the image in the studies folder.
        bundle: the bundle.
        configs: of the bundle, base first.
        options: of its command.
        values: what a request brings where the image has no sidecar.
    """

    model: str
    image: str
    bundle: str
    configs: tuple[str, ...] = ("inference.json",)
    options: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)


TIMES = " ".join(repr(float(time)) for time in np.geomspace(0.05, 4, 12))
REQUESTS = [
    Request("rim_relaxometry", "sub-01_IRT1", "rim_relaxometry", values={"series_times_s": TIMES,
            "series_repetition_time_s": "8"}),
    Request("qsmgan", "sub-01_MEGRE", "qsmgan", values={"echo_times_s": str(ECHO_TIMES), "field_strength_t": "3",
            "phase_range": "-3.141592653589793, 3.141592653589793"}),
    Request("stnet_perfusion", "sub-01_dsc", "stnet_perfusion", values={"repetition_time_s": "1.5",
            "echo_time_s": "0.03"}),
    Request("rim_relaxometry", "sub-02_IRT1", "rim_relaxometry"),
    Request("deepspio", "sub-01_viewline", "deepspio"),
    Request("qsmrim_net", "sub-01_lesions", "qsmrim_net", values={"qsm_unit": "ppm"}),
    Request("stnet_perfusion", "sub-02_dsc", "stnet_perfusion"),
    Request("rim_relaxometry_t2", "sub-01_MESE", "rim_relaxometry", ("inference.json", "t2.json"),
            values={"series_times_s": "0.02 0.04 0.06 0.08 0.1 0.12 0.14 0.16"}),
    Request("qsmgan_local_field", "sub-01_localfield", "qsmgan", options={"input_kind": "local_field"},
            values={"field_unit": "ppm", "field_strength_t": "3"}),
]  # fmt: skip
FIRST = {request.model: request for request in reversed(REQUESTS)}


def joined_lesions(folder: Path, truth: npt.NDArray[np.float32]) -> None:
    """Susceptibility, FLAIR and lesion mask as one 4-D file."""
    lesion_maps(folder, truth)
    parts = [nib.load(folder / f"sub-01_{name}.nii.gz") for name in ("Chimap", "FLAIR", "label-lesion_mask")]
    joined = np.stack([np.asarray(part.dataobj, np.float32) for part in parts], -1)
    affine = parts[0].affine
    shutil.rmtree(folder)
    folder.mkdir()
    nib.save(nib.Nifti1Image(joined, affine), folder / "sub-01_lesions.nii.gz")
    (folder / "sub-01_lesions.json").write_text(json.dumps({"Units": "ppm"}))


def joined_echoes(folder: Path, truth: npt.NDArray[np.float32]) -> None:
    """Magnitudes, then phases, of the field of two spheres at 3 T, as one 4-D file with the mask beside it."""
    chi, rng = float(np.nanmax(truth)), np.random.default_rng(1)
    values = np.zeros(truth.shape)
    for sign, offsets in zip((1, -1), from_centres(), strict=True):
        r = np.linalg.norm(offsets, axis=0).clip(min=1e-3)
        values += np.where(r > 6.0, sign * chi / 3 * (6.0 / r) ** 3 * (3 * (offsets[2] / r) ** 2 - 1), 0)
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in truth.shape], indexing="ij"))
    mask = np.linalg.norm(grid / (0.46 * np.reshape(truth.shape, (3, 1, 1, 1))), axis=0) < 1
    times = np.reshape(ECHO_TIMES, (4, 1, 1, 1))
    signal = 1000 * mask * np.exp(-20 * times + 2j * np.pi * 42.577478 * 3 * values * times)
    signal = signal + rng.normal(0, 3, signal.shape) + 1j * rng.normal(0, 3, signal.shape)
    joined = np.concatenate([np.abs(signal), np.angle(signal)]).astype(np.float32)
    folder.mkdir()
    nib.save(nib.Nifti1Image(np.moveaxis(joined, 0, -1), np.eye(4)), folder / "sub-01_MEGRE.nii.gz")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.eye(4)), folder / "sub-01_MEGRE_mask.nii.gz")
    (folder / "sub-01_MEGRE.json").write_text(json.dumps({"EchoTime": ECHO_TIMES, "MagneticFieldStrength": 3}))


def write_studies(folder: Path, scratch: Path) -> None:
    """Inputs of all models side by side, and each again without its sidecar, as subject ``bare``."""
    relaxometry, field_map = RUNS["rim_relaxometry"], RUNS["qsmgan"][0]
    inputs: list[tuple[str, Callable[..., None], npt.NDArray[np.float32]]] = [
        ("sub-01", relaxometry[0].write, relaxometry[0].truth),
        ("sub-02", relaxometry[0].write, 0.5 * relaxometry[0].truth),
        ("sub-01", relaxometry[1].write, relaxometry[1].truth),
        ("sub-01", RUNS["stnet_perfusion"][0].write, RUNS["stnet_perfusion"][0].truth),
        ("sub-02", RUNS["stnet_perfusion"][0].write, 1.5 * RUNS["stnet_perfusion"][0].truth),
        ("sub-01", RUNS["deepspio"][0].write, RUNS["deepspio"][0].truth),
        ("sub-01", joined_lesions, rims(50, 0, 0, 50)),
        ("sub-01", joined_echoes, field_map.truth),
        ("sub-01", field_map.write, field_map.truth),
    ]
    folder.mkdir()
    for number, (subject, write, truth) in enumerate(inputs):
        made = scratch / str(number)
        write(made, truth)
        # Masks are named after their image, as several images share the folder.
        [image] = [p for p in made.glob("*.nii.gz") if "mask" not in p.name]
        name = image.name.removesuffix(".nii.gz")
        for file in made.iterdir():
            apart = "mask" in file.name and name not in file.name
            target = file.name.replace("sub-01_", f"{name}_") if apart else file.name
            for person in {subject, subject.replace("01", "bare")}:
                if person != "sub-bare" or file.suffix != ".json":
                    shutil.copy(file, folder / target.replace("sub-01", person))


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundles as they are now, packed."""
    folder = tmp_path_factory.mktemp("dist")
    for bundle in BUNDLES:
        write_zip(stage(REPOSITORY / "bundles" / bundle, folder / "stage", REPOSITORY), folder / f"{bundle}.zip")
    return {bundle: folder / f"{bundle}.zip" for bundle in BUNDLES}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_studies(folder / "studies", folder)
    return folder / "studies"


@pytest.fixture(scope="module")
def server(zips: dict[str, Path], studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the server on this machine; it ends with the module."""
    set_up(ENVIRONMENT)
    folder = tmp_path_factory.mktemp("server")
    assert list(build_app(list(zips.values()), folder / "app")) == sorted([*BUNDLES, *VARIANTS])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(REPOSITORY / "scripts/monai_label.py"), "start", str(studies), "--port", str(port)]
    # No proxy and no name of another machine: nothing but this one is asked for anything.
    settings = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "https_proxy": "http://127.0.0.1:9"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--app", str(folder / "app")], stdout=log, stderr=log, env=settings)
        try:
            _wait(f"http://127.0.0.1:{port}/info/", process, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            assert process.wait(60) is not None
    with socket.socket() as gone:
        assert gone.connect_ex(("127.0.0.1", port)) != 0


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if requests.get(address, timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(1)
    raise AssertionError(f"no answer in {START_S} s: {log.read_text()[-4000:]}")


def ask(server: str, model: str, image: str, output: str = "image", **values: object) -> requests.Response:
    return requests.post(
        f"{server}/infer/{model}", {"params": json.dumps(values)}, params={"image": image, "output": output},
        timeout=ANSWER_S,
    )  # fmt: skip


def volume(answer: requests.Response, folder: Path) -> nib.Nifti1Image:
    assert answer.status_code == 200, answer.text
    (folder / "answer.nii.gz").write_bytes(answer.content)
    return nib.load(folder / "answer.nii.gz")


@pytest.fixture(scope="module")
def own(zips: dict[str, Path], studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Request], Path]:
    """The folder of the maps that a bundle writes by itself of the same file, in the tests' environment."""
    folder = tmp_path_factory.mktemp("own")
    with ExitStack() as opened:
        roots = {bundle: opened.enter_context(open_bundle(path)) for bundle, path in zips.items()}
        runs = []
        for request in REQUESTS:
            root = roots[request.bundle]
            inputs = {"bundle_root": str(root), "dataset_dir": str(studies / f"{request.image}.nii.gz")}
            inputs |= {"output_dir": str(folder / request.model / request.image), **request.options}
            runs.append({"config_file": [str(root / "configs" / config) for config in request.configs], **inputs})
        # One process: the import of torch and MONAI takes longer than all of the runs.
        code = "import json, sys; from monai.bundle import run; [run(**one) for one in json.loads(sys.argv[1])]"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-c", code, json.dumps(runs)]
        done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return lambda request: folder / request.model / request.image


def difference(found: nib.Nifti1Image, folder: Path, name: str) -> float:
    """Largest absolute difference from the map of the bundle, over the largest absolute value of that."""
    path = min(folder.rglob(f"*_{name}.nii.gz"), key=lambda found: len(found.name))  # mask is no label-core_mask
    wanted = nib.load(path)
    assert found.shape == wanted.shape
    assert found.get_data_dtype() == wanted.get_data_dtype()
    assert np.allclose(found.affine, wanted.affine, atol=1e-5)
    truth = np.asarray(wanted.dataobj, np.float64)
    return float(np.abs(np.asarray(found.dataobj, np.float64) - truth).max() / (np.abs(truth).max() or 1.0))


def listed(server: str) -> dict[str, list[str]]:
    models = requests.get(f"{server}/info/", timeout=60).json()["models"]
    return {name: model["config"]["map"] for name, model in models.items()}


def test_all_models_alternating_in_two_rounds(server: str, own: Callable[[Request], Path], tmp_path: Path) -> None:
    maps = listed(server)
    assert sorted(maps) == sorted([*BUNDLES, *VARIANTS])
    rows = []
    for turn in (1, 2):
        for request in REQUESTS:
            begin = time.monotonic()
            found = volume(ask(server, request.model, request.image), tmp_path)
            seconds = time.monotonic() - begin
            name = maps[request.model][0]
            off = difference(found, own(request), name)
            row = {"round": turn, "model": request.model, "image": request.image, "map": name}
            row |= {"voxels": int(np.prod(found.shape)), "difference": off, "seconds": round(seconds, 2)}
            rows.append(row)
            print("round {round}  {model:20} {image:18} {map:18} {difference:.1e}  {seconds} s".format(**row))
    if target := os.environ.get("LABEL_JSON"):
        Path(target).write_text(json.dumps(rows, indent=2) + "\n")
    assert {row["model"] for row in rows} == set(maps)
    assert [row for row in rows if row["difference"] > TOLERANCE] == []


@pytest.mark.parametrize("model", sorted([*BUNDLES, *VARIANTS]))
def test_every_map_that_is_offered(model: str, server: str, own: Callable[[Request], Path], tmp_path: Path) -> None:
    request = FIRST[model]
    offered = listed(server)[model]
    for name in offered:
        assert (
            difference(volume(ask(server, model, request.image, map=name), tmp_path), own(request), name) <= TOLERANCE
        )
    refused = ask(server, model, request.image, map="nothing")
    assert refused.status_code == 422
    assert f"one of {', '.join(offered)}" in refused.json()["detail"]


@pytest.mark.parametrize("request_", [r for r in FIRST.values() if r.values], ids=lambda request: request.model)
def test_values_of_a_request_stand_in_for_a_sidecar(request_: Request, server: str, tmp_path: Path) -> None:
    bare = request_.image.replace("sub-01", "sub-bare")
    whole = np.asarray(volume(ask(server, request_.model, request_.image), tmp_path).dataobj).copy()
    found = volume(ask(server, request_.model, bare, **request_.values), tmp_path)
    assert np.array_equal(np.asarray(found.dataobj), whole)
    # Wrong ones are refused, which shows that each is read.
    for name in request_.values:
        refused = ask(server, request_.model, bare, **(request_.values | {name: "-1000"}))
        if not (request_.model == "qsmgan_local_field" and name == "field_strength_t"):  # ppm need no field strength
            assert refused.status_code == 422, name
            assert "remedy:" in refused.json()["detail"]
    # What one request brings is gone in the next.
    refused = ask(server, request_.model, bare)
    assert refused.status_code == 422
    assert "expected:" in refused.json()["detail"]


def test_a_request_names_no_file_but_its_image(server: str, tmp_path: Path) -> None:
    request = FIRST["stnet_perfusion"]
    plain = np.asarray(volume(ask(server, request.model, request.image), tmp_path).dataobj).copy()
    brought = {name: "/nowhere.nii.gz" for name in ("mask", "aif_mask_file", "vof_mask_file")}
    for values in (brought, brought | {"stem": "a"}):
        found = volume(ask(server, request.model, request.image, **values), tmp_path)
        assert np.array_equal(np.asarray(found.dataobj), plain)


def test_an_image_that_is_sent_to_the_server(server: str, studies: Path, tmp_path: Path) -> None:
    request = FIRST["rim_relaxometry"]
    with (studies / f"{request.image}.nii.gz").open("rb") as file:
        sent = {"file": ("sent.nii.gz", file)}
        answer = requests.put(f"{server}/datastore/image", params={"image": "sent"}, files=sent, timeout=60)
    assert answer.json() == {"image": "sent"}
    try:
        found = volume(ask(server, request.model, "sent", **request.values), tmp_path)
        values = np.asarray(found.dataobj).copy()
        assert np.array_equal(values, np.asarray(volume(ask(server, request.model, request.image), tmp_path).dataobj))
    finally:
        requests.delete(f"{server}/datastore/image", params={"id": "sent"}, timeout=60)


def test_what_is_said_of_a_map(server: str) -> None:
    found = ask(server, "rim_relaxometry", "sub-01_IRT1", "json").json()
    assert (found["map"], found["unit"], found["label_names"]) == ("T1map", "s", {})
    found = ask(server, "qsmrim_net", "sub-01_lesions", "json", map="desc-rim_dseg").json()
    assert found["label_names"] == {"desc-rim_dseg 1": 1, "desc-rim_dseg 2": 2}


def test_bad_requests_are_answered_in_words_and_the_server_goes_on(server: str, tmp_path: Path) -> None:
    refused = ask(server, "stnet_perfusion", "sub-bare_dsc")
    assert refused.status_code == 422
    for part in ("sub-bare_dsc.nii.gz", "EchoTime", "no such field", "remedy:", "echo_time_s=SECONDS"):
        assert part in refused.json()["detail"]
    assert ask(server, "rim_relaxometry", "nobody").status_code == 422
    assert ask(server, "nothing", "sub-01_IRT1").status_code == 404
    assert ask(server, "deepspio", "sub-01_IRT1").status_code == 422
    trap = tmp_path / "trap"
    code = f"$__import__('pathlib').Path({str(trap)!r}).touch()"
    component = {"_target_": "pathlib.Path.touch", "self": "$__import__('pathlib').Path('trap')"}
    for value in (code, [code], {"a": [code]}, component, "%configs/metadata.json"):
        assert ask(server, "rim_relaxometry", "sub-01_IRT1", map=value).status_code == 422
    assert not trap.exists()
    assert ask(server, "rim_relaxometry", "sub-01_IRT1").status_code == 200


def test_as_3d_slicer_and_ohif_ask(server: str, own: Callable[[Request], Path], tmp_path: Path) -> None:
    """The client of Slicer's own module gets the map; OHIF asks for bytes, and gets whole seconds."""
    [client] = (ENVIRONMENT / "lib").glob(
        "python*/site-packages/*/data/monailabel/plugins/slicer/**/MONAILabelLib/client.py"
    )
    code = """
import runpy, sys
client = runpy.run_path(sys.argv[1])["MONAILabelClient"](sys.argv[2], sys.argv[3])
file, said = client.infer("rim_relaxometry", "sub-01_IRT1", {"map": "T1map"})
print(file, said["unit"])
"""
    command = [str(ENVIRONMENT / "bin/python"), "-c", code, str(client), server, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    file, unit = done.stdout.split()
    assert unit == "s"
    assert difference(nib.load(file), own(FIRST["rim_relaxometry"]), "T1map") <= TOLERANCE
    as_bytes = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    answer = ask(server, "rim_relaxometry", "sub-01_IRT1", **as_bytes)
    assert answer.status_code == 200
    assert answer.content.startswith(b"NRRD")
    assert b"type: unsigned char" in answer.content[:400]
