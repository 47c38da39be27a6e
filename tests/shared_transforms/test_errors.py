"""The one exception: its message has five parts, and it survives a process boundary."""

import pickle
import sys

import pytest

from shared_transforms.errors import QMRIError, show_errors_plainly


def make(**changes):
    parts = {"file": "a.nii", "field": "dim", "found": (1, 2), "expected": "3 axes", "remedy": "convert again"}
    return QMRIError(**{**parts, **changes})


def test_message_has_the_five_parts_each_on_a_line_of_its_own():
    lines = str(make()).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["file", "field", "found", "expected", "remedy"]
    assert lines[3].endswith("(1, 2)")


def test_parts_that_do_not_apply_are_left_out():
    text = str(make(file=None, field=None))
    assert "file:" not in text and "field:" not in text and "remedy:" in text


def test_attributes_are_kept_and_survive_pickling():
    copy = pickle.loads(pickle.dumps(make()))
    assert isinstance(copy, QMRIError)
    assert (copy.file, copy.field, copy.found) == ("a.nii", "dim", "(1, 2)")
    assert str(copy) == str(make())


def test_it_is_a_value_error():
    with pytest.raises(ValueError, match="convert again"):
        raise make()


@pytest.mark.parametrize(("variable", "plain"), [("0", True), ("1", False)])
def test_a_wrapped_error_is_shown_without_its_traceback(monkeypatch, capsys, variable, plain):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setenv("QMRI_TRACEBACK", variable)
    show_errors_plainly()
    show_errors_plainly()  # once is enough, twice does no harm
    wrapped = RuntimeError("Failed to instantiate")
    wrapped.__cause__ = make()
    sys.excepthook(RuntimeError, wrapped, None)
    text = capsys.readouterr().err
    assert "remedy:   convert again" in text and ("Failed to instantiate" in text) != plain


def test_other_errors_are_shown_as_ever(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    show_errors_plainly()
    sys.excepthook(KeyError, KeyError("x"), None)
    assert "KeyError: 'x'" in capsys.readouterr().err
