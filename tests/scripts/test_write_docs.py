"""Documents generated from results, and the register of trained weights."""

import hashlib
import json
import shutil
from pathlib import Path

import docs_results
import pytest
import torch
import write_docs
from bundle_files import read_bundle
from bundle_metadata import filled, wall_time
from docs_results import Results, Table
from documents import documents_of
from ignite.engine import Engine, Events
from training_record import ANOTHER, RecordError, network_configs, recipe, register, training_configs

from shared_transforms.tracking import MLflowTracking

REPOSITORY = Path(__file__).resolve().parents[2]
RIM = REPOSITORY / "bundles" / "rim_relaxometry"
BEGIN, END = (mark.format("rim_relaxometry") for mark in (write_docs.BEGIN, write_docs.END))
PROVENANCE = {
    "commit": "0123abcdef01",
    "seed": 7,
    "hardware": {"cpu": "a processor", "cores": 2, "threads": 1, "gpu": None, "os": "Linux"},
    "versions": {"torch": "2.13.0"},
}


def held_out_row(method: str, tissue: str, snr: float, rmse: float) -> dict[str, object]:
    row = {"protocol": "N31", "noise": "rician", "snr": snr, "texture": True, "method": method, "tissue": tissue}
    row |= {"voxels": 1234, "rmse": rmse, "rmse_low": 0.9 * rmse, "rmse_high": 1.1 * rmse, "robust_sd": rmse}
    bias = 0.1 * rmse
    row |= {"median_bias": bias, "median_bias_low": bias - 1, "median_bias_high": bias + 1}
    return row | {"bound": 2.0, "bound_b_known": 1.0, "rmse_over_mle": 0.5}


ROWS = [
    *(held_out_row("rim", "GM", snr, rmse) for snr, rmse in ((10, 4.25), (30, 2.5))),
    *(held_out_row("mle_smooth", "GM", snr, rmse) for snr, rmse in ((10, 5.5), (30, 2.0))),
    *(held_out_row("mle_shared", "GM", snr, rmse) for snr, rmse in ((10, 6.5), (30, 3.0))),
    *(held_out_row("trivial", "GM", snr, 40.0) for snr in (10, 30)),
    {"method": "resnet", "note": "left out: no file resnet.pt of its weights"},
]
TARGETS = [
    {"target": "RIM RMSE over smooth-B MLE: GM, SNR 10", "limit": 1.3, "measured": 0.77, "met": True},
    {"target": "RIM RMSE over smooth-B MLE: GM, SNR 30", "limit": 1.3, "measured": 1.42, "met": False},
    {"target": "standard error over SD in GM, SNR 10: within 25 %", "limit": 0.25, "measured": 0.1, "met": True},
]


def write_result(folder: Path, name: str, rows: list, **more: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"provenance": PROVENANCE | more, "rows": rows}))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the bundle's configs and network, some results, and a README."""
    root = tmp_path / "repository"
    bundle = root / "bundles" / "rim_relaxometry"
    shutil.copytree(RIM / "configs", bundle / "configs")
    (bundle / "rim_relaxometry").mkdir()
    shutil.copy(RIM / "rim_relaxometry" / "network.py", bundle / "rim_relaxometry")
    shutil.copy(REPOSITORY / "constraints.txt", root)
    (root / "README.md").write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nend\n")
    write_result(bundle / "docs" / "results", "t1_held_out", ROWS, notes=["Six heads."], targets=TARGETS)
    return root


@pytest.fixture
def bundle(repository: Path) -> Path:
    return repository / "bundles" / "rim_relaxometry"


def run(repository: Path, *arguments: str) -> int:
    return write_docs.main(["--repository", str(repository), "--bundle", "rim_relaxometry", *arguments])


def test_committed_documents_are_what_would_be_generated(capsys: pytest.CaptureFixture[str]) -> None:
    status = write_docs.main(["--check"])
    assert status == 0, capsys.readouterr().out


def test_written_once_they_are_up_to_date(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(repository, "--check") == 1
    assert "out of date" in capsys.readouterr().out
    assert run(repository) == 0
    assert run(repository, "--check") == 0
    capsys.readouterr()
    assert run(repository) == 0
    assert capsys.readouterr().out == ""  # nothing to write


def test_a_changed_number_is_noticed(repository: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(repository)
    card = bundle / "docs" / "README.md"
    card.write_text(card.read_text().replace("4.25", "3.25"))
    assert run(repository, "--check") == 1
    assert "4.25" in capsys.readouterr().out


def test_model_card_shows_results_beside_their_rivals(repository: Path, bundle: Path) -> None:
    run(repository)
    card = (bundle / "docs" / "README.md").read_text()
    assert "| tissue | SNR | bound, B known | RIM | MLE, B smooth | MLE, B shared | mean of table 1 |" in card
    assert "| GM | 10 | 1 | 4.25 | 5.50 | 6.50 | 40 |" in card
    assert "Six heads." in card
    assert "commit 0123abcdef01" in card
    # Where the network loses is said.
    assert "| N31 | rician | 30 | yes | GM | 2.50 | 2 | MLE, B smooth |" in card
    assert "| RIM RMSE over smooth-B MLE | <= 1.30 | 1 | 2 | 1.42 | GM, SNR 30 | t1_held_out |" in card
    assert "* RIM RMSE over smooth-B MLE: 1.42 where <= 1.30 was asked for (GM, SNR 30), met in 1 of 2" in card
    assert "None" not in card


def test_readme_keeps_what_stands_around_its_section(repository: Path) -> None:
    run(repository)
    text = (repository / "README.md").read_text()
    assert text.startswith("# Title\n\n" + BEGIN)
    assert text.endswith(END + "\n\nend\n")
    assert "old" not in text
    assert "| GM | 10 | 4.25 |" in text
    assert "Of 3 requirements measured, 2 are met." in text


def test_readme_without_a_section_is_refused(repository: Path) -> None:
    (repository / "README.md").write_text("# Title\n")
    with pytest.raises(SystemExit, match="no section"):
        run(repository)


def test_metadata_has_metrics_beside_the_best_classical_estimator(repository: Path, bundle: Path) -> None:
    path = bundle / "configs" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"required_packages_version": {"SimpleITK": "1"}}))
    run(repository)
    metadata = json.loads(path.read_text())
    assert metadata["eval_metrics"]["T1"]["RMSE_GM_SNR30"] == {
        "value": 2.5,
        "unit": "percent",
        "n": 1234,
        "confidence_interval": [2.25, 2.75],
        "baseline": {"name": "MLE, B smooth", "value": 2.0, "confidence_interval": [1.8, 2.2]},
    }
    train = json.loads((bundle / "configs" / "train.json").read_text())
    assert metadata["acquisition"]["times_s"] == train["times_s"]
    assert metadata["pytorch_version"] in (REPOSITORY / "constraints.txt").read_text()
    assert all(metadata["required_packages_version"].values())
    pins = (REPOSITORY / "constraints.txt").read_text()
    assert f"simpleitk=={metadata['required_packages_version']['SimpleITK']}\n" in pins


def map_row(method: str, head: str, noise: float, nrmse: float, xsim: float) -> dict[str, object]:
    row: dict[str, object] = {"method": method, "noise_ppm": noise, "head": head, "nrmse": nrmse, "hfen": 2 * nrmse}
    row |= {"detrended_nrmse": nrmse - 1, "slope": 0.9, "xsim": xsim}
    if head == "mean":
        row |= {"heads": 2 if noise == 0.003 else 1}
        row |= {
            f"{column}_{end}": row[column]
            for column in ("nrmse", "detrended_nrmse", "hfen", "xsim")
            for end in ("low", "high")
        }
    return row


MAPS = [
    *(map_row("qsmgan", "mean", noise, 25.0, 0.8) for noise in (0.003, 0.001)),
    *(map_row("tv", "mean", noise, 24.0, 0.7) for noise in (0.003, 0.001)),
    map_row("cosmos", "mean", 0.003, 10.0, 0.9),
    {**map_row("medi", "mean", 0.003, 20.0, 0.7), "heads": 1},  # on fewer heads: no rival
    *(map_row("qsmgan", str(head), 0.003, 25.0, 0.8) for head in (0, 1)),
    map_row("tv", "0", 0.003, 26.0, 0.7),
    map_row("tv", "1", 0.003, 22.0, 0.7),
    {"method": "unet", "note": "left out: no file unet.pt of its weights"},
]


@pytest.fixture
def qsmgan(repository: Path) -> Path:
    """A second bundle in the repository, without results."""
    bundle = repository / "bundles" / "qsmgan"
    shutil.copytree(REPOSITORY / "bundles" / "qsmgan" / "configs", bundle / "configs")
    marks = "\n".join(mark.format("qsmgan") for mark in (write_docs.BEGIN, write_docs.END))
    (repository / "README.md").write_text((repository / "README.md").read_text() + marks + "\n")
    return bundle


def test_a_bundle_without_results_says_so(repository: Path, qsmgan: Path) -> None:
    assert write_docs.main(["--repository", str(repository)]) == 0
    assert "Not measured yet" in (qsmgan / "docs" / "README.md").read_text()
    readme = (repository / "README.md").read_text()
    assert "Not measured yet." in readme.partition(write_docs.BEGIN.format("qsmgan"))[2]
    assert "| GM | 10 | 4.25 |" in readme  # the section of the other bundle
    assert json.loads((qsmgan / "configs" / "metadata.json").read_text())["eval_metrics"] == {}


def test_one_bundle_is_written_alone(repository: Path, qsmgan: Path, bundle: Path) -> None:
    assert write_docs.main(["--repository", str(repository), "--bundle", "qsmgan"]) == 0
    assert (qsmgan / "docs" / "README.md").is_file()
    assert not (bundle / "docs" / "README.md").exists()


def test_tables_of_maps_and_what_they_lose(repository: Path, qsmgan: Path) -> None:
    results = qsmgan / "docs" / "results"
    target = {"target": "QSMGAN NRMSE over TV: noise 0.003 ppm", "limit": 1.0, "measured": 1.04, "met": False}
    write_result(results, "method_table", MAPS, notes=["Two heads."], targets=[target])
    sweep = [{"tilt_degrees": t, "method": m, "nrmse": 30.0, "hfen": 50.0} for t in (0, 30) for m in ("tv", "qsmgan")]
    write_result(results, "tilt_sweep", sweep)
    write_result(results, "tiles", [{"method": "qsmgan", "tile": 96, "difference_percent": 0.5}])
    assert write_docs.main(["--repository", str(repository), "--bundle", "qsmgan"]) == 0
    card = (qsmgan / "docs" / "README.md").read_text()
    assert "| TV-ADMM | 24 (24 to 24) | 48 (48 to 48) |" in card
    assert "| tilt [degrees] | TV-ADMM | QSMGAN |" in card
    assert "| QSMGAN | 96 | 0.500 |" in card
    # Worse than TV on the second head alone, in NRMSE, detrended NRMSE and HFEN.
    assert "In 3 of the comparisons" in card
    assert "| QSMGAN | 0.00300 | 1 | NRMSE [%] | 25 | 22 | TV-ADMM |" in card
    metadata = json.loads((qsmgan / "configs" / "metadata.json").read_text())
    assert metadata["eval_metrics"]["susceptibility"]["NRMSE"] == {
        "value": 25.0,
        "unit": "percent",
        "n": 2,
        "confidence_interval": [25.0, 25.0],
        "baseline": {"name": "TV-ADMM", "value": 24.0, "confidence_interval": [24.0, 24.0]},
        "interval": "range over the heads",
        "noise_ppm": 0.003,
    }
    assert "| QSMGAN | 25 | 24 | 50 | 0.800 | 0.900 | 2 | - |" in (repository / "README.md").read_text()


def test_the_data_format_follows_the_training(repository: Path, qsmgan: Path) -> None:
    train = json.loads((qsmgan / "configs" / "train.json").read_text())
    (qsmgan / "configs" / "train.json").write_text(json.dumps(train | {"patch_size": 96, "crop": 24}))
    write_docs.main(["--repository", str(repository), "--bundle", "qsmgan"])
    described = json.loads((qsmgan / "configs" / "metadata.json").read_text())["network_data_format"]
    assert described["inputs"]["image"]["spatial_shape"] == [96, 96, 96]
    assert described["outputs"]["pred"]["spatial_shape"] == [48, 48, 48]
    assert len(described["inputs"]["image"]["channel_def"]) == len(train["channels"])


def test_names_of_bundles_and_runs_are_checked(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, word in (
        (["--bundle", "other"], "rim_relaxometry"),
        (["--register-weights", ".", "--as", "a"], "needs"),
    ):
        with pytest.raises(SystemExit):
            write_docs.main(["--repository", str(repository), *arguments])
        assert word in capsys.readouterr().err


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A training that was not tracked, with a log beside it."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    state = {"cell.weight": torch.ones(2, 3), "cell.bias": torch.zeros(2)}
    torch.save(state, folder / "checkpoints" / "model.pt")
    torch.save({"progress": {"epoch": 4, "iteration": 400}}, folder / "checkpoints" / "checkpoint_epoch=4.pt")
    (tmp_path / "run.log").write_text(
        "2026-01-01 10:00:00,100 - INFO - begin\n"
        "2026-01-01 10:20:00,100 - INFO - Key metric: RMSE best value: 5.125 at epoch: 3\n"
        "2026-01-01 10:30:00,100 - INFO - end\n"
    )
    return folder


GIVEN = {"commit": "0123abc-dirty", "hardware": "one core"}


def test_registered_weights_are_the_same_file(bundle: Path, run_dir: Path) -> None:
    path = register(run_dir, bundle, "model.pt", GIVEN)
    source, target = run_dir / "checkpoints" / "model.pt", bundle / "models" / "model.pt"
    assert target.read_bytes() == source.read_bytes()
    record = json.loads(path.read_text())
    assert path.name == "training_model.json"
    assert record["sha256"] == hashlib.sha256(target.read_bytes()).hexdigest()
    assert (record["seconds"], record["epochs"], record["steps"], record["number_of_weights"]) == (1800.0, 4, 400, 8)
    assert record["best_validation"] == {"RMSE": 5.125}
    assert record["network"] == ["inference.json"]
    assert record["seed"] == json.loads((bundle / "configs" / "train.json").read_text())["seed"]
    entry = filled(
        read_bundle(bundle), Results.read(path.parent), REPOSITORY / "constraints.txt", documents_of(bundle.name)
    )["provenance"]
    assert entry["models/model.pt"]["commit"] == "0123abc"
    assert entry["models/model.pt"]["uncommitted_changes"] is True
    assert entry["models/model.pt"]["hardware"] == "one core, 30 minutes"


def test_buffers_that_networks_no_longer_keep_are_left_behind(bundle: Path, run_dir: Path) -> None:
    source = run_dir / "checkpoints" / "model.pt"
    state = torch.load(source, weights_only=True)
    torch.save(state | {"signal_model.times": torch.ones(5)}, source)
    register(run_dir, bundle, "model_t2.pt", GIVEN)
    kept = torch.load(bundle / "models" / "model_t2.pt", weights_only=True)
    assert sorted(kept) == ["cell.bias", "cell.weight"]


def test_an_ensemble_is_one_file_of_several_runs(bundle: Path, run_dir: Path, tmp_path: Path) -> None:
    other, buffers = tmp_path / "other", tmp_path / "calibration.pt"
    (other / "checkpoints").mkdir(parents=True)
    first = torch.load(run_dir / "checkpoints" / "model.pt", weights_only=True)
    second = {key: value + 1 for key, value in first.items()}
    progress = {"epoch": 4, "iteration": 400}
    for folder, state in ((run_dir, first), (other, second)):
        torch.save({"network": state, "progress": progress}, folder / "checkpoints" / "checkpoint_epoch=4.pt")
    (tmp_path / "other.log").write_text((tmp_path / "run.log").read_text())
    torch.save({"thresholds": torch.tensor([0.5, 0.25])}, buffers)
    given = GIVEN | {"seed": 3}
    record = json.loads(
        register(run_dir, bundle, "model.pt", given, epoch=4, members=[other], buffers=buffers).read_text()
    )
    found = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert found.keys() == {f"members.{n}.{key}" for n in (0, 1) for key in first} | {"thresholds"}
    for number, state in enumerate((first, second)):
        assert all(torch.equal(found[f"members.{number}.{key}"], value) for key, value in state.items())
    assert record["number_of_weights"] == 2 * 8 + 2
    assert [one["seed"] for one in record["members"]] == [3]
    commands = record["recipe"].split(ANOTHER)
    assert len(commands) == 2 and commands[0] == commands[1] == record["members"][0]["recipe"]
    assert wall_time(record) == "30 + 30 minutes"
    register(run_dir, bundle, "model.pt", given, epoch=4, members=[other], buffers=buffers, half=True)
    small = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert small["members.1.cell.weight"].dtype == torch.float16
    assert small["members.1.cell.bias"].dtype == small["thresholds"].dtype == torch.float32
    assert all(torch.equal(small[key].float(), value) for key, value in found.items())


@pytest.mark.parametrize(
    ("name", "configs"),
    [
        ("model.pt", ["inference.json"]),
        ("model_t2.pt", ["inference.json", "t2.json"]),
        ("resnet.pt", ["inference.json", "resnet.json"]),
    ],
)
def test_configs_that_load_the_weights(name: str, configs: list[str]) -> None:
    assert network_configs(read_bundle(RIM), name) == configs


def test_weights_of_two_stages_are_made_by_two_trainings(bundle: Path) -> None:
    configs = {"train.json": "first.pt", "train_more.json": "model.pt", "inference.json": "model.pt"}
    found = read_bundle(bundle)
    for name, weights in configs.items():
        found.configs[name] = {"weights": f"$@bundle_root + '/models/{weights}'"}
    for name, networks, training in (
        ("first.pt", ["train.json"], ["train.json"]),
        ("model.pt", ["inference.json"], ["train_more.json"]),
    ):
        assert network_configs(found, name) == networks
        assert training_configs(found, name, networks) == training


def test_what_is_missing_is_named(bundle: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecordError, match="commit, hardware: give --commit, --hardware"):
        register(run_dir, bundle, "model.pt")
    with pytest.raises(RecordError, match=r"no config loads models/other\.pt"):
        register(run_dir, bundle, "other.pt", GIVEN)
    with pytest.raises(RecordError, match="is not there"):
        register(run_dir / "nowhere", bundle, "model.pt", GIVEN)
    assert not (bundle / "models").exists()
    assert run(bundle.parents[1], "--register-weights", str(run_dir), "--as", "model.pt") == 1
    assert "not registered" in capsys.readouterr().err


def test_recipe_names_what_was_changed_on_the_command_line(bundle: Path) -> None:
    values = json.loads((bundle / "configs" / "train.json").read_text())
    command = recipe(read_bundle(bundle), ["train.json", "t2.json"], {"epochs": 3, "seed": values["seed"]})
    assert command.endswith("--epochs 3")
    assert '["configs/train.json", "configs/t2.json"]' in command


def test_a_tracked_run_tells_everything(bundle: Path, run_dir: Path) -> None:
    trainer = Engine(lambda engine, batch: {"loss": 1.0})
    trainer.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)  # type: ignore[attr-defined]
    recipe_values = {"epochs": 2, "parameter": "T1", "repetition_time_s": 3.5}
    MLflowTracking(run_dir, seed=5, recipe=recipe_values, config={}).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: None)
    trainer.run([0, 1], max_epochs=2)
    record = json.loads(register(run_dir, bundle, "model.pt").read_text())
    assert record["seed"] == 5
    assert record["commit"]
    assert "thread(s)" in record["hardware"]
    assert record["seconds"] > 0
    assert record["recipe"].endswith("--epochs 2 --repetition_time_s 3.5")


def test_numbers_have_three_digits_and_no_exponent() -> None:
    values = [4.256, 0.01234, 123.4, 99999.0, 7, 5.0, True, None, float("nan"), "text", 0.0, 1e-9]
    assert [docs_results.number(value) for value in values] == [
        *("4.26", "0.0123", "123", "99999", "7", "5", "yes", "-", "-", "text", "0", "1e-09")
    ]  # fmt: skip


def test_pivot_has_a_column_for_each_value() -> None:
    rows = [{"snr": s, "method": m, "rmse": r} for s, m, r in ((3, "rim", 1.0), (3, "mle", 2.0), (5, "rim", 3.0))]
    text = docs_results.pivot(rows, {"snr": "SNR"}, "method", "rmse", {"rim": "RIM", "mle": "MLE"})
    assert text.splitlines() == ["| SNR | RIM | MLE |", "|---|---|---|", "| 3 | 1 | 2 |", "| 5 | 3 | - |"]


def test_a_whole_table_has_every_column_that_holds_something() -> None:
    rows = [
        {"method": "tkd", "nrmse": 50.0, "nrmse_low": 40.0, "nrmse_high": 60.0, "left": None},
        {"method": "tv", "nrmse": 20.0, "kept": 1},
    ]
    text = docs_results.whole_table(rows, {"nrmse": "NRMSE [%]"}, {"tkd": "TKD"})
    assert text.splitlines() == [
        *("| method | NRMSE [%] | kept |", "|---|---|---|", "| TKD | 50 (40 to 60) | - |", "| tv | 20 | 1 |")
    ]


def test_rows_are_chosen_by_their_columns() -> None:
    table = Table("t", ROWS, PROVENANCE)
    assert len(table.where(method="rim")) == 2
    assert len(table.where(method=("rim", "trivial"), snr=30)) == 2
    assert len(table.where(note=None)) == len(ROWS) - 1  # without the remark that a method is left out


def test_benchmark_targets_are_told_too() -> None:
    row = {"stage": "RIM", "value": 1.4, "unit": "s", "target": "<= 1 s", "reached": False}
    results = Results({"benchmark": Table("benchmark", [row, {"stage": "other", "reached": None}], {})})
    [found] = results.targets()
    assert (found["target"], found["limit"], found["worst"], found["met"], found["total"]) == (
        *("RIM", "<= 1 s", "1.40 s", 0, 1),
    )
