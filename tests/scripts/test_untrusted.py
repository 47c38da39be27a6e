"""What could run in a foreign bundle is named, and none of it runs."""

import io
import json
import pickle
import pickletools
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from check_bundle import main
from untrusted import Finding, report
from untrusted.code import code_findings
from untrusted.weights import weight_findings

ROOT = Path(__file__).parents[2]


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("open('ran', 'w')",))


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A bundle of which every file leaves one behind when it is run, imported or unpickled."""
    root = tmp_path / "foreign"
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    run = "open('ran', 'w')"
    config = {
        "imports": ["$import sys", "$import foreign_code", "$from os import system as cos"],
        "bundle_root": ".",
        "a": f"${run}",
        "b": {"_target_": "os.system", "command": "touch ran"},
        "c#d": [{"_target_": "$exec"}, {"_target_": "@a"}, {"_target_": "foreign_code.Net"}],
        "g": [{"_target_": "$'os.' + 'system'"}, {"_target_": "$@b#command"}, {"_target_": "%b#_target_"}],
        "e": "%/etc/passwd",
        "tracking": "http://evil.example.org/x",
        "optimizer": {"_target_": "torch.optim.Adam", "lr": "$0.1 * @rate", "params": "$@network.parameters()"},
    }
    (root / "configs/metadata.json").write_text('{"version": "1.0.0", "see": "https://example.org"}')
    (root / "configs/inference.json").write_text(json.dumps(config))
    (root / "configs/more.yaml").write_text(f"x: $[{run}]\ny: &y [1]\nz: [*y, *y]\n")
    (root / "configs/object.yml").write_text("!!python/object/apply:os.system ['touch ran']\n")
    (root / "configs/deep.json").write_text("[" * 100_000)
    handler = f"[handler_x]\nclass=StreamHandler\nargs=({run},)\n"
    (root / "configs/logging.conf").write_text(handler)
    (root / "foreign_code.py").write_text(run)
    (root / "torch.py").write_text(run)
    (root / "broken.py").write_text("def :")
    (root / "hook.so").write_bytes(b"\x7fELF")
    (root / "code.tar.gz").write_bytes(b"x")
    (root / "image.NII.gz").write_bytes(b"x")
    (root / "link").symlink_to("/etc/passwd")
    (root / "outside").symlink_to("/etc")
    torch.save({"net": Evil()}, root / "models/model.pt")
    (root / "models/model.pkl").write_bytes(pickle.dumps(Evil()))
    np.save(root / "models/array.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    return root


EXPECTED = {
    ("expressions", "$open('ran', 'w')", "configs/inference.json", "a"),
    ("targets", "$exec", "configs/inference.json", "c#d#0#_target_"),
    ("targets", "$'os.' + 'system'", "configs/inference.json", "g#0#_target_"),
    ("targets", "$@b#command", "configs/inference.json", "g#1#_target_"),
    ("targets", "%b#_target_", "configs/inference.json", "g#2#_target_"),
    ("expressions", "$[open('ran', 'w')]", "configs/more.yaml", "x"),
    ("targets", "os.system", "configs/inference.json", "b#_target_"),
    ("targets", "@a", "configs/inference.json", "c#d#1#_target_"),
    ("own targets", "foreign_code.Net", "configs/inference.json", "c#d#2#_target_"),
    ("own targets", "$import foreign_code", "configs/inference.json", "imports#1"),
    ("imports", "$from os import system as cos", "configs/inference.json", "imports#2"),
    ("macros", "%/etc/passwd", "configs/inference.json", "e"),
    ("addresses", "http://evil.example.org/x", "configs/inference.json", "tracking"),
    ("logging", "args=(open('ran', 'w'),)", "configs/logging.conf", "handler_x"),
    ("writes or deletes files", "open to write", "foreign_code.py", "1"),
    ("writes or deletes files", "open to write", "torch.py", "1"),
    ("modules in front of others", "torch", "torch", ""),
    ("own code", "1 files, 0 lines", "foreign_code.py", ""),
    ("files of other kinds", ".so", "hook.so", ""),
    ("files of other kinds", ".gz", "code.tar.gz", ""),
    ("links and devices", "link", "link", ""),
    ("links and devices", "link", "outside", ""),
    ("weights", "imports builtins exec", "models/model.pkl", ""),
    ("weights", "an array of objects, which numpy unpickles", "models/array.npy", ""),
}
# Fails if any of the bundle is run: what Python tells its auditors of cannot be done in silence.
AUDIT = """
import sys, check_bundle, yaml, configparser, encodings.ascii, encodings.unicode_escape, encodings.latin_1
import importlib.metadata
importlib.metadata.packages_distributions()
FORBIDDEN = ("exec", "pickle", "marshal", "os.system", "os.exec", "os.posix_spawn", "subprocess", "socket", "ctypes")
def hook(event, arguments):
    if event.startswith(FORBIDDEN):
        raise SystemExit(f"{event} {arguments}")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(hook)
sys.exit(check_bundle.main(["--untrusted", "--json", sys.argv[1]]) + 40)
"""


def test_everything_that_could_run_is_named_and_nothing_runs(foreign: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", AUDIT, str(foreign)]
    environment = {"PYTHONPATH": str(ROOT / "scripts"), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 41, done.stderr
    assert not (tmp_path / "ran").exists()
    found = {tuple(finding.values()) for finding in json.loads(done.stdout)[str(foreign)]}
    assert found >= EXPECTED
    assert ("weights", "imports __builtin__ exec", "models/model.pt") in {row[:3] for row in found}
    unread = {row[2] for row in found if row[0] == "not looked into"}
    assert unread == {"broken.py", "configs/deep.json", "configs/object.yml"}
    assert not any("image" in row[2] for row in found)
    texts = {row[1]: row[0] for row in found}
    assert texts["torch.optim.Adam"] == "own targets", "which the file torch.py takes the place of"
    assert "$@network.parameters()" not in texts and "$0.1 * @rate" not in texts


def test_a_bundle_of_known_parts_alone_has_no_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "configs").mkdir()
    network = {"_target_": "UNet", "spatial_dims": 2, "channels": "$[@width, 2 * @width]"}
    handler = {"_target_": "monai.handlers.StatsHandler", "iteration_log": False}
    config = {"imports": ["$import torch"], "device": "$torch.device('cpu')", "network_def": network, "h": [handler]}
    (tmp_path / "configs/inference.json").write_text(json.dumps(config))
    (tmp_path / "configs/logging.conf").write_text((ROOT / "bundles/qsmgan/configs/logging.conf").read_text())
    (tmp_path / "configs/metadata.json").write_text('{"schema": "https://example.org", "unit": "percent"}')
    (tmp_path / "LICENSE").write_text("Apache-2.0")
    torch.save(torch.nn.BatchNorm2d(3).state_dict(), tmp_path / "model.pt")
    assert main(["--untrusted", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: 0 finding(s) for a reader to judge\n"


CODE = [
    ("import os\nos.system('x')", "starts programs", "os.system"),
    ("from os import system as s\ns('x')", "starts programs", "os.system"),
    ("import torch\ntorch.os.system('x')", "starts programs", "torch.os.system"),
    ("from torch import os\nos.popen('x')", "starts programs", "torch.os.popen"),
    ("import os\nx = os", "names that cannot be followed", "os handed on"),
    ("import os\ngetattr(os, 'sys' + 'tem')('x')", "names that cannot be followed", "getattr of a computed name"),
    ("import os\ngetattr(os, 'system')('x')", "starts programs", "os.system"),
    ("import subprocess as p\np.run('x')", "starts programs", "subprocess.run"),
    ("f = eval", "runs text as code", "eval"),
    ("exec('1')", "runs text as code", "exec"),
    ("__builtins__['eval']", "runs text as code", "__builtins__"),
    ("__import__('os')", "runs text as code", "__import__"),
    ("import importlib\nimportlib.import_module(x)", "runs text as code", "importlib.import_module"),
    ("().__class__.__subclasses__()", "names that cannot be followed", "__subclasses__"),
    ("from os import *", "names that cannot be followed", "from os import *"),
    ("from monai.bundle import ConfigParser", "evaluates configs", "import monai.bundle.ConfigParser"),
    ("import socket", "network", "import socket"),
    ("import urllib.request\nurllib.request.urlopen(x)", "network", "urllib.request.urlopen"),
    ("x = 'https://example.org/a'", "addresses", "https://example.org/a"),
    ("import ctypes", "native code", "import ctypes"),
    ("import pickle\npickle.loads(x)", "unpickles", "pickle.loads"),
    ("import torch\ntorch.load(x)", "unpickles", "torch.load"),
    ("import torch\ntorch.load(x, weights_only=False)", "unpickles", "torch.load"),
    ("import torch\nf = torch.load", "unpickles", "torch.load"),
    ("from torch import load\nload(x)", "unpickles", "torch.load"),
    ("import numpy as np\nnp.load(x, allow_pickle=True)", "unpickles", "numpy.load"),
    ("import yaml\nyaml.load(x, L)", "unpickles", "yaml.load"),
    ("open(x, 'wb')", "writes or deletes files", "open to write"),
    ("open(x, mode=m)", "writes or deletes files", "open to write"),
    ("p.open('a')", "writes or deletes files", "open to write"),
    ("p.write_text('x')", "writes or deletes files", ".write_text"),
    ("import shutil\nshutil.rmtree(x)", "writes or deletes files", "shutil.rmtree"),
    ("import os\nos.environ['X'] = '1'", "changes the process", "os.environ"),
    ("import sys\nsys.path.append('x')", "changes the process", "sys.path.append"),
    ("def :", "not looked into", "SyntaxError: invalid syntax (<unknown>, line 1)"),
    ("x = " + "(" * 1000, "not looked into", "SyntaxError: too many nested parentheses (<unknown>, line 1)"),
]


@pytest.mark.parametrize(("source", "group", "text"), CODE)
def test_what_is_of_concern_in_code_is_named_with_its_line(source: str, group: str, text: str) -> None:
    found = [finding for finding in code_findings("a.py", source.encode(), []) if finding.group == group]
    line = "" if group == "not looked into" else str(len(source.splitlines()))
    assert Finding(group, text, "a.py", line) in found


@pytest.mark.parametrize(
    "source",
    [
        *("import torch\ntorch.load(x, weights_only=True)", "import numpy as np\nnp.load(x, allow_pickle=False)"),
        *("open(x)", "open(x, 'rb')", "p.open()", "import re\nre.compile('x')", "import torch\ntorch.compile(x)"),
        *("model.eval()", "getattr(x, 'shape')", "code = 1\ncode.x", "import os\nos.path.join('a', 'b')"),
        *("'''See https://example.org.'''", "from own.signal import load\nload(1)", "from . import subprocess"),
        *("import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    pass", "import sys\nsys.exit(1)"),
    ],
)
def test_usual_code_is_of_no_concern(source: str) -> None:
    assert code_findings("a.py", source.encode(), ["own"]) == []


def test_an_import_whose_uses_are_named_is_not_named_as_well() -> None:
    source = "import subprocess\nimport socket\nfrom pickle import loads\nsubprocess.run(1)\nloads(2)"
    found = [(finding.text, finding.place) for finding in code_findings("a.py", source.encode(), [])]
    assert sorted(found) == [("import socket", "2"), ("pickle.loads", "5"), ("subprocess.run", "4")]


def saved(value: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def zipped(**entries: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "."), content)
    return file.getvalue()


def array(value: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


def scripted() -> bytes:
    with pytest.warns(DeprecationWarning):
        return bytes(torch.jit.script(torch.nn.Linear(1, 1)).save_to_buffer())


STATE = {"a": torch.zeros(2, dtype=torch.bfloat16), "b": torch.nn.Parameter(torch.ones(3)), "n": 1, "d": torch.float16}
WEIGHTS = [
    (lambda: saved(STATE), []),
    (lambda: saved(OrderedDict(STATE)), []),
    (lambda: array(np.zeros(3)), []),
    (lambda: zipped(a__npy=array(np.zeros(3)), b__npy=array(np.ones(1))), []),
    (lambda: pickle.dumps({"a": 1.5, "b": ["x"]}), []),
    (lambda: saved(torch.nn.Identity()), ["torch.nn.modules.linear Identity", "__builtin__ set"]),
    (lambda: pickle.dumps(Evil(), 0), ["imports __builtin__ exec"]),
    (lambda: pickle.dumps(Evil(), 2), ["imports __builtin__ exec"]),
    (lambda: pickle.dumps(Evil(), 5), ["imports builtins exec"]),
    # The name put together on the stack: by a detour, from the memo, from nothing.
    (lambda: b"\x80\x04\x8c\x02os\x8c\x06system\x30\x8c\x06system\x93.", ["a name that it computes"]),
    (lambda: b"\x80\x04\x8c\x02os\x94\x30\x8c\x06system\x94\x30h\x00h\x01\x93.", ["imports os system"]),
    (lambda: b"\x80\x04)\x8c\x06system\x93.", ["a name that it computes"]),
    (lambda: b"\x80\x02\x82\x01.", ["a name of copyreg's table"]),
    (lambda: pickle.dumps(1) + b"more", ["other data behind it"]),
    (lambda: saved({"a": torch.zeros(1)}, _use_new_zipfile_serialization=False), ["other data behind it"]),
    (lambda: array(np.array([1, None])), ["array of objects"]),
    (lambda: zipped(a__npy=array(np.array([1, None]))), ["array of objects"]),
    (lambda: scripted(), ["TorchScript"]),
    (lambda: zipped(data__pkl=pickle.dumps(1), zeros=bytes(40 * 1024**2)), ["compression bomb"]),
    (lambda: zipped(text=b"1"), ["neither torch's nor numpy's"]),
    (lambda: b"\x80\x04garbage", ["ValueError"]),
    (lambda: saved(STATE)[:400], ["Error"]),
    (lambda: b"", ["Error"]),
]


@pytest.mark.parametrize(("make", "words"), WEIGHTS)
def test_weights_are_read_without_loading_them(tmp_path: Path, make: object, words: list[str]) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(make())  # type: ignore[operator]
    texts = [finding.text for finding in weight_findings("model.pt", path)]
    assert bool(texts) is bool(words)
    for word in words:
        assert any(word in text for text in texts), texts


def test_what_a_pickle_imports_is_what_unpickling_asks_for(tmp_path: Path) -> None:
    """Against Python's own unpickler, on a module of many kinds of parts."""
    content = pickle.dumps([torch.nn.Conv2d(1, 2, 3), OrderedDict(a={1}), Path("x"), np.float64(1), range(3)])
    asked: set[str] = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            asked.add(f"imports {module} {name}")
            return super().find_class(module, name)

    Unpickler(io.BytesIO(content)).load()
    (tmp_path / "a.pkl").write_bytes(pickletools.optimize(content))
    found = {finding.text for finding in weight_findings("a.pkl", tmp_path / "a.pkl")}
    allowed = {"imports collections OrderedDict", "imports torch._utils _rebuild_parameter"}
    assert found == {name for name in asked if name not in allowed and "_rebuild_tensor_v2" not in name}
    assert len(found) > 5


def test_the_page_shows_each_thing_once_and_no_control_characters() -> None:
    found = [Finding("expressions", "$f(\x1b[2J)", "a.json", id) for id in ("x", "y\u202e")]
    page = report([*found, Finding("expressions", "$f(\x1b[2J)", "b.json", "z")])
    assert page.isascii() and page.replace("\n", "").isprintable()
    assert page.count("$f(") == 1
    assert "a.json: x, y\\u202e" in page and "b.json: z" in page


def test_a_refused_zip_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("../evil", "x")
    assert main(["--untrusted", "--json", str(tmp_path / "b.zip")]) == 1
    out, err = capsys.readouterr()
    assert "refused" in err and "leads out" in out
