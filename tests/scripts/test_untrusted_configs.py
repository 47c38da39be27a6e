"""What a config of a foreign bundle could run is listed, and known parts are passed over."""

import contextlib
import json
from pathlib import Path

import pytest
from monai.bundle import ConfigParser
from untrusted.configs import config_findings, harmless, known_target


@pytest.mark.parametrize(
    "expression",
    [
        *("@a", "@a#b::c + 1", "[@a, 'x', None, -1.5]", "{'a': @b}", "@a[0]", "@x[1:2]", "@a if @b == 'T1' else 2"),
        *("str(@resume).lower() == 'true'", "@evaluator.run()", "@net_def.to(@device)", "not @a", "@a and @b or 3"),
        *("max(1, round(0.5 * @epochs))", "[x + 1 for x in @a]", "lambda a, b: a < b", "torch.device('cpu')"),
        *("torch.device('cuda' if torch.cuda.is_available() else 'cpu')", "monai.utils.set_determinism(@seed)"),
        *("sys.path.insert(0, @bundle_root)", "@net.to(@device, memory_format=torch.channels_last)", "'a' + @b"),
    ],
)
def test_an_expression_of_known_parts_is_passed_over(expression: str) -> None:
    assert harmless(expression)


@pytest.mark.parametrize(
    "expression",
    [
        *("open('x')", "__import__('os')", "eval('1')", "@a(1)", "@a.b(1)", "@a.b", "os.system('x')", "(lambda: 1)()"),
        *("torch.load('x')", "torch.load", "torch.device.__globals__", "().__class__", "''.format(@a)", "f'{@a}'"),
        *(
            "torch.nn.os.system('x')",
            "[f(1) for f in [@a]]",
            "[len(1) for len in [@a]]",
            "(lambda torch: torch.device(1))(@a)",
        ),
        *("[torch.device(1) for torch in [@a]]", "(x := @a)", "9 ** 9 ** 9", "@a['x']('y')", "max(@a, key=@b)()"),
        *("sys.path.insert(0, '/tmp')", "sys.path.insert", "run()", "1; 2", "import os", "'@if@else'", "'a' '@b'"),
        *("1 # ::", "@a ::", "await @a", "print(@a)", "getattr(@a, 'b')", "1 +", "(" * 500, "x", "\0"),
    ],
)
def test_any_other_expression_is_listed(expression: str) -> None:
    assert not harmless(expression)
    [finding] = config_findings("c.json", json.dumps({"x": "$" + expression}).encode(), [])
    assert finding.group in ("expressions", "imports")


@pytest.mark.parametrize(
    ("target", "known"),
    [
        *(("UNet", True), ("monai.networks.nets.UNet", True), ("monai.networks.nets.unet.UNet", True)),
        *(("monai.transforms.LoadImaged", True), ("torch.nn.L1Loss", True), ("torch.optim.lr_scheduler.StepLR", True)),
        *(("torch.utils.data.DataLoader", True), ("CacheDataset", True), ("monai.data.CacheDataset", True)),
        *(("exec", False), ("print", False), ("antigravity", False), ("os.system", False), ("builtins.exec", False)),
        *(("torch.load", False), ("torch.hub.load", False), ("torch.nn.modules.module.torch.load", False)),
        *(("torch.nn.functional.torch.load", False), ("monai.bundle.run", False), ("monai.bundle.ConfigParser", False)),
        *(("monai.data.utils.pickle.Unpickler", False), ("monai.data.subprocess.Popen", False)),
        *(("monai.utils.run_cmd", False), ("monai.apps.download_url", False), ("PersistentDataset", False)),
        *(("MLFlowHandler", False), ("monai.handlers.MLFlowHandler", False), ("monai.networks.Nothing", False)),
        *(("PerceptualLoss", False), ("ClearMLHandler", False)),
        *(("", False), (".", False), ("UNet.__init__", False), ("elsewhere.UNet", False), ("@network", False)),
    ],
)
def test_a_target_is_known_only_by_its_full_way(target: str, known: bool) -> None:
    assert known_target(target) is known


MAKE = "os.mkdir"  # of what a config calls without a sign of it: a folder is made
CALLS = [
    {"name": MAKE, "x": {"_target_": "$@name", "path": "ran"}},
    {"name": MAKE, "x": {"_target_": "@name", "path": "ran"}},
    {"x": {"_target_": "$'os.' + 'mkdir'", "path": "ran"}},
    {"x": {"_target_": "LoadImage", "reader": MAKE, "path": "ran"}},
    {"x": {"_target_": "LoadImaged", "keys": "image", "reader": [MAKE], "path": "ran"}},
    {"name": MAKE, "x": {"_target_": "LoadImage", "reader": "$@name", "path": "ran"}},
    {
        "load": {"_target_": "LoadImage", "_mode_": "callable", "path": "ran"},
        "data": {"_target_": "Dataset", "data": [MAKE], "transform": "@load"},
        "x": "$@data[0]",
    },
]


@pytest.mark.parametrize("config", CALLS)
@pytest.mark.filterwarnings("ignore:Preferably the reader")
def test_what_monai_calls_by_a_name_in_a_text_is_listed(
    config: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these runs a function of its author's choice when MONAI parses it."""
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(Exception):  # what comes after the call is of no interest
        ConfigParser(config).get_parsed_content("x")
    assert (tmp_path / "ran").is_dir()
    assert [finding.group for finding in config_findings("c.json", json.dumps(config).encode(), [])] == ["targets"]


@pytest.mark.parametrize(
    ("name", "value", "groups"),
    [
        *(("reader", "ITKReader", []), ("merger_cls", "AvgMerger", []), ("writer", "NibabelWriter", [])),
        *(("writer", "antigravity", ["targets"]), ("merger_cls", "a.b", ["targets"]), ("+reader", "@a", ["targets"])),
        *(("reader", "numpyreader", ["targets"]), ("writer", "own.Writer", ["own targets"])),
        *(("_mode_", "default", []), ("_mode_", "callable", ["targets"])),
    ],
)
def test_names_in_arguments_are_listed_unless_they_are_monais_classes(name: str, value: str, groups: list[str]) -> None:
    content = json.dumps({"x": {"_target_": "SaveImage", name: value}}).encode()
    assert [finding.group for finding in config_findings("c.json", content, ["own"])] == groups


@pytest.mark.parametrize("name", ["FileHandler", "logging.FileHandler", "handlers.RotatingFileHandler"])
def test_a_log_that_is_written_to_a_file_is_listed(name: str) -> None:
    content = f"[handler_x]\nclass={name}\nargs=('/home/u/.bashrc', 'w')\n".encode()
    [finding] = config_findings("configs/logging.conf", content, [])
    assert (finding.group, finding.text) == ("logging", f"class={name}")


@pytest.mark.parametrize("name", ["_target_", "a#_target_", "a::_target_", "+_target_"])
def test_a_target_is_seen_however_its_id_is_written(name: str) -> None:
    assert [finding.group for finding in config_findings("c.json", json.dumps({name: "os.system"}).encode(), [])] == [
        "targets"
    ]


@pytest.mark.parametrize(
    ("field", "value", "listed"),
    [
        *(("class", "StreamHandler", False), ("class", "logging.StreamHandler", False), ("class", "eval", True)),
        *(
            ("class", "handlers.SocketHandler", True),
            ("class", "own.Handler", True),
            ("class", "__import__('os')", True),
        ),
        *(("args", "(sys.stdout,)", False), ("args", "()", False), ("args", "(os.system('x'),)", True)),
        *(("kwargs", "{'a': 1}", False), ("kwargs", "{'a': sys.modules}", True), ("args", "(%(level)s,)", True)),
    ],
)
def test_what_logging_would_evaluate_is_listed(field: str, value: str, listed: bool) -> None:
    text = f"[handler_a]\nlevel=open('x')\n{field}={value}\n"
    assert bool(config_findings("logging.conf", text.encode(), [])) is listed
