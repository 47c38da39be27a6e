"""What a site of a federation trains with; the training itself is in test_federated.py."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from federated import SITE_SCRIPT


@pytest.fixture(scope="module")
def train_site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_site", SITE_SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FEDERATION = {"values": {"seed": 1, "epochs": 2}, "sites": {"site-1": {"seed": 5}, "site-2": {}}}


def test_a_sites_own_values_go_before_those_of_all(train_site: ModuleType) -> None:
    assert train_site.values_of("site-1", FEDERATION) == {"seed": 5, "epochs": 2}
    assert train_site.values_of("site-2", FEDERATION) == {"seed": 1, "epochs": 2}


def test_a_client_that_the_job_does_not_name_trains_nothing(train_site: ModuleType) -> None:
    with pytest.raises(ValueError, match="'site-3'; the job was made for site-1, site-2"):
        train_site.values_of("site-3", FEDERATION)
