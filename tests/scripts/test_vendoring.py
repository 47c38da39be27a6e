"""Names of packages that become part of another are replaced by syntax, in code and in configs."""

import json
import sys
from pathlib import Path

import pytest
from vendoring import Vendor


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    package = tmp_path / "demo_pkg"
    shared = ("physics/__init__.py", "physics/noise.py", "shared_transforms/__init__.py", "shared_transforms/io.py")
    for file in (*shared, "network.py"):
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text("VALUE = 3\n" if file == "physics/noise.py" else "")
    (package / "__init__.py").touch()
    return Vendor("demo", package)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from physics.noise import a", "from demo_pkg.physics.noise import a"),
        ("from physics import noise", "from demo_pkg.physics import noise"),
        ("from  physics.noise  import (\n  a,\n  b)", "from  demo_pkg.physics.noise  import (\n  a,\n  b)"),
        ("from \\\n  physics import noise", "from \\\n  demo_pkg.physics import noise"),
        ("import physics.noise as n", "import demo_pkg.physics.noise as n"),
        ("import physics", "import demo_pkg.physics as physics"),
        (
            "import os, physics.noise, sys",
            "import os, demo_pkg.physics.noise as _physics_noise, demo_pkg.physics as physics, sys",
        ),
        ("if x: import physics as p; y = 1", "if x: import demo_pkg.physics as p; y = 1"),
        ('é = "é"; from physics import noise', 'é = "é"; from demo_pkg.physics import noise'),
        ('f(_target_="physics.noise.Gauss")', 'f(_target_="demo_pkg.physics.noise.Gauss")'),
        ("T = {'a': '''shared_transforms.io.a'''}", "T = {'a': '''demo_pkg.shared_transforms.io.a'''}"),
        ('files("shared_transforms")', 'files("demo_pkg.shared_transforms")'),
        ('importlib.import_module("physics")', 'importlib.import_module("demo_pkg.physics")'),
        ("from demo.network import Net", "from demo_pkg.network import Net"),
        ("import demo.network as n", "import demo_pkg.network as n"),
        ('T = "demo.network.Net"', 'T = "demo_pkg.network.Net"'),
        ('files("demo")', 'files("demo_pkg")'),
    ],
)
def test_python_is_rewritten(vendor: Vendor, code: str, expected: str) -> None:
    assert vendor.python(code) == expected


@pytest.mark.parametrize(
    "code",
    [
        "from .physics import noise",
        "from . import physics",
        "import astrophysics.noise, physics_tools",
        "from my.physics.noise import a",
        "physics = 1\nphysics.noise",
        '"""physics.noise"""',
        "# from physics.noise import a",
        'x = "from physics.noise import a"',
        'x = "physics.pdf"',
        'x = "physics"',
        'x = "see physics.noise"',
        'x = f"{a} physics.noise"',
        'x = f"physics. {a}"',
        'method = "demo"',
        "from ..demo import network",
    ],
)
def test_python_that_names_no_such_package_stays(vendor: Vendor, code: str) -> None:
    assert vendor.python(code) == code


CUT = ['x = f"physics.noise"', 'x = f"demo.network.{a}"', 'x = "physics" ".noise"', 'x = "physics\\x2enoise"']


@pytest.mark.parametrize("code", CUT)
def test_a_name_in_pieces_is_refused(vendor: Vendor, code: str) -> None:
    with pytest.raises(ValueError, match="plain string literal"):
        vendor.python(code)


def test_rewritten_imports_bind_what_they_did(vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    code = "import physics\nimport physics.noise\nimport physics.noise as n\nfrom physics import noise\n"
    names: dict[str, object] = {}
    exec(vendor.python(code + "value = physics.noise.VALUE + n.VALUE + noise.VALUE"), names)
    assert names["value"] == 9
    assert names["physics"] is sys.modules["demo_pkg.physics"]
    for module in [module for module in sys.modules if module.startswith("demo_pkg")]:
        monkeypatch.delitem(sys.modules, module)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("physics.noise.Gauss", "demo_pkg.physics.noise.Gauss"),
        ("$from physics.noise import a", "$from demo_pkg.physics.noise import a"),
        ("$import shared_transforms.io as io", "$import demo_pkg.shared_transforms.io as io"),
        ("$import physics", "$import demo_pkg.physics as physics"),
        ("$f('physics.noise', @a#b::c)", "$f('demo_pkg.physics.noise', @a#b::c)"),
        ("$'physics.noise'", "$'demo_pkg.physics.noise'"),
        ("$physics.noise.sigma(@snr)", "$physics.noise.sigma(@snr)"),
        ("$@a @ @b", "$@a @ @b"),
        ("$not python (", "$not python ("),
        ("the physics.noise model", "the physics.noise model"),
        ("demo.network.Net", "demo_pkg.network.Net"),
        ("$from demo.network import Net", "$from demo_pkg.network import Net"),
        ("demo", "demo"),
        ("demo.unknown", "demo.unknown"),
        ("physics.html", "physics.html"),
        ("@physics", "@physics"),
    ],
)
def test_configs_are_rewritten(vendor: Vendor, value: str, expected: str) -> None:
    text = json.dumps({"_target_": value, "list": [1, value]}, indent=2)
    assert json.loads(vendor.json(text)) == {"_target_": expected, "list": [1, expected]}


def test_the_layout_of_a_config_stays(vendor: Vendor) -> None:
    text = '{ "times_s": [0.1,0.2],\n\n "é\\n": "physics.noise.A" }\n'
    assert vendor.json(text) == text.replace("physics", "demo_pkg.physics")
