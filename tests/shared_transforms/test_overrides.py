"""Overrides that MONAI would swallow are errors; those that mean something pass."""

import inspect
import json

import fire
import pytest
from monai.bundle import run

from shared_transforms.errors import QMRIError
from shared_transforms.overrides import _parse_fire, check_overrides

CONFIG = {
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "learning_rate": 0.001,
    "network_def": {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 4},
    "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network_def.parameters()", "lr": "@learning_rate"},
    "open_ended": {"_target_": "builtins.dict", "a": 1},
    "unknown": {"_target_": "no_such_package.Thing", "a": 1},
    "plain": {"snr_range": [3, 100]},
    "train": {"handlers": [{"_target_": "StatsHandler", "name": "x"}], "trainer": {"max_epochs": 5}},
    "run": ["$print(@learning_rate)"],
}


@pytest.fixture
def command(tmp_path):
    """Builds sys.argv of a run in tmp_path."""
    (tmp_path / "train.json").write_text(json.dumps(CONFIG))
    (tmp_path / "overlay.json").write_text(
        json.dumps({"t2_only": 1, "train#trainer#max_epochs": 2, "+plain": {"b": 2}})
    )

    def build(*overrides, config="train.json", program="/x/monai/bundle/__main__.py", verb="run"):
        file = str(tmp_path / config) if config else None
        return [program, verb, *(["--config_file", file] if file else []), *overrides]

    build.folder = tmp_path
    return build


GOOD = [
    (),
    ("--learning_rate", "0.1"),
    ("--learning-rate", "0.1"),  # fire reads a hyphen as an underscore
    ("--learning_rate=-0.1", "--output_dir=/a=b"),
    ("--train#trainer#max_epochs", "2", "--plain::snr_range::1", "30"),
    ("--train::handlers#0#name", "y"),
    ("--network_def#bias", "False"),  # a parameter of torch.nn.Linear that the config leaves at its default
    ("--network_def#_target_", "torch.nn.Conv2d"),
    ("--train#handlers#0#_disabled_", "true"),
    ("--open_ended#anything", "1"),
    ("--unknown#anything", "1"),
    ("--run_id", "run", "--init_id", "initialize", "--final_id=finalize", "--workflow_type", "train"),
    ("--meta_file", "m.json", "--logging_file", "l.conf", "--properties_path", "p.json", "--_meta_#version", "2"),
    ("--tracking", "mlflow", "--experiment_name", "e", "--run_name", "r", "--tracking_uri", "sqlite:///x.db"),
    ("run", "--learning_rate", "1"),
    ("--learning_rate", "1", "--", "--verbose"),
]


@pytest.mark.parametrize("overrides", GOOD, ids=" ".join)
def test_overrides_that_mean_something_pass(command, overrides):
    check_overrides(command(*overrides))


BAD = [
    (("--learning_rat", "0.1"), "learning_rate"),
    (("--learning_rat=0.1",), "learning_rate"),
    (("--lerning_rate",), "learning_rate"),
    (("--train#trainer#max_epoch", "2"), "train#trainer#max_epochs"),
    (("--train::trainr::max_epochs", "2"), "train#trainer"),
    (("--trane#trainer", "2"), "train#trainer"),
    (("--network_def#in_feature", "2"), "network_def#in_features"),
    (("--network_def#biass", "False"), "network_def#bias"),
    (("--plain#snr_rang", "2"), "plain#snr_range"),
    (("--plain#snr_range#2", "2"), "an index from 0 to 1"),
    (("--learning_rate#x", "2"), "learning_rate itself"),
    (("--train#handlers#0#nam", "2"), "train#handlers#0#name"),
    (("--config_fil", "2"), "config_file"),
    (("--experiment_name", "e"), "existing id"),  # only --tracking reads it
    (("--learning_rate", "1", "--outptu_dir", "x"), "output_dir"),
]


@pytest.mark.parametrize(("overrides", "closest"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_misspelt_overrides_name_the_closest_key(command, overrides, closest):
    with pytest.raises(QMRIError) as caught:
        check_overrides(command(*overrides))
    error = caught.value
    assert error.field in {o.split("=")[0] for o in overrides}
    assert closest in error.expected
    assert error.file.endswith("train.json") and error.found.startswith("no '") and error.remedy


def test_the_command_line_is_read_as_fire_reads_it(command):
    """fire itself is the reference."""
    seen = {}

    def capture(*args, **kwargs):
        seen.update(inspect.signature(run).bind(*args, **kwargs).arguments)

    capture.__signature__ = inspect.signature(run)
    for overrides, *_ in [*BAD, *((g,) for g in GOOD)]:
        line = command(*overrides)[2:]
        seen.clear()
        fire.Fire(capture, command=[a for a in line if a not in ("--", "--verbose")])
        read = {**seen, **seen.pop("override", {})}
        read.pop("override", None)
        given = {k: v for k, v in read.items() if v is not None}
        assert _parse_fire(line) == given


@pytest.mark.parametrize("quoted", ["['{}','{}']", "[{},{}]", "{},{}", '["{}", "{}"]'])
def test_several_config_files_are_merged_as_monai_does(command, quoted):
    files = quoted.format(command.folder / "train.json", command.folder / "overlay.json")
    check_overrides(command("--config_file", files, "--t2_only", "3", "--plain#b", "1", config=None))
    with pytest.raises(QMRIError, match="t2_only"):
        check_overrides(command("--config_file", files, "--t2_onyl", "3", config=None))
    with pytest.raises(QMRIError):
        check_overrides(command("--t2_only", "3"))


def test_args_file_is_checked_too(command):
    args = command.folder / "args.json"
    args.write_text(json.dumps({"config_file": str(command.folder / "train.json"), "learning_rat": 1}))
    with pytest.raises(QMRIError, match="learning_rate"):
        check_overrides(command("--args_file", str(args), config=None))


def test_positional_config_file(command):
    command_line = command("run", "initialize", "finalize", "None", str(command.folder / "train.json"), config=None)
    check_overrides([*command_line, "--learning_rate", "1"])
    with pytest.raises(QMRIError, match="learning_rate"):
        check_overrides([*command_line, "--learning_rat", "1"])


def test_duplicate_keys_are_refused(command):
    (command.folder / "train.json").write_text('{"a": 1, "net": {"x": 1, "x": 2}}')
    with pytest.raises(QMRIError) as caught:
        check_overrides(command("--a", "1"))
    assert caught.value.field == "x" and "twice" in caught.value.found and caught.value.file.endswith("train.json")


def test_unparsable_config(command):
    (command.folder / "train.json").write_text('{"a": 1,}')
    with pytest.raises(QMRIError, match="not readable as JSON"):
        check_overrides(command())


@pytest.mark.parametrize(
    "argv",
    [
        ["/x/pytest/__main__.py", "run", "--nonsense", "1"],
        ["/x/monai/bundle/__main__.py", "ckpt_export", "--nonsense", "1"],
        ["/x/monai/bundle/__main__.py"],
        [""],
    ],
)
def test_other_processes_are_left_alone(argv):
    check_overrides(argv)


def test_the_command_line_of_this_process_is_no_run():
    check_overrides()
