"""The code of our own bundles, read by what reads foreign ones."""

from pathlib import Path

from untrusted.code import code_findings

ROOT = Path(__file__).parents[2]

# What in the bundles starts programs, runs text as code, unpickles or calls a library of C, each read by a person.
# A new one is to be read, and then written here.
REVIEWED = {
    ("bundles/qsmgan/qsmgan/experiments/scores.py", "ctypes"),  # gives memory back to the system
    ("bundles/qsmrim_net/qsmrim_net/cohort/build.py", "concurrent"),  # simulates in processes of its own
    ("bundles/qsmrim_net/qsmrim_net/cohort/build.py", "multiprocessing"),
    ("bundles/rim_relaxometry/rim_relaxometry/experiments/phantom.py", "subprocess"),  # dcm2niix
    ("shared_transforms/batch/processes.py", "multiprocessing"),  # one process for each share of the subjects
    ("shared_transforms/export.py", "torch"),  # loads the TorchScript that it has just written
    ("shared_transforms/provenance.py", "subprocess"),  # git
    ("shared_transforms/tracking/config.py", "f_locals"),  # the config that MONAI runs, which it hands to no handler
    ("shared_transforms/tracking/config.py", "sys"),
}
WATCHED = {"starts programs", "native code", "unpickles"}
WATCHED_NAMES = {"compile", "eval", "exec", "f_locals", "__import__", "runpy", "torch.jit.load", "torch.hub.load"}


def test_our_bundles_have_no_use_of_concern_that_nobody_read() -> None:
    found = set()
    for folder in ("physics", "shared_transforms", "bundles"):
        for path in (ROOT / folder).rglob("*.py"):
            file = path.relative_to(ROOT).as_posix()
            for finding in code_findings(file, path.read_bytes(), []):
                if finding.text in WATCHED_NAMES or finding.group in WATCHED:
                    found.add((file, finding.text.removeprefix("import ").split(".")[0]))
    assert found == REVIEWED
