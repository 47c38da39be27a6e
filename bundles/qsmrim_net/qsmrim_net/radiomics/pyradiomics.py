"""pyradiomics, imported where it is needed and kept quiet."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from types import ModuleType

from shared_transforms.errors import QMRIError
from shared_transforms.quiet import quiet as quiet_log

__all__ = ["one_thread", "pyradiomics_module", "quiet"]


def quiet() -> AbstractContextManager[None]:
    """Neither log messages of pyradiomics nor warnings, as long as it lasts."""
    return quiet_log("radiomics", logging.CRITICAL + 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """SimpleITK on one thread, as long as it lasts: for images as small as lesions, starting more takes longest."""
    process = import_module("SimpleITK").ProcessObject
    threads = process.GetGlobalDefaultNumberOfThreads()
    process.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        process.SetGlobalDefaultNumberOfThreads(threads)


def pyradiomics_module(name: str) -> ModuleType:
    """A module of pyradiomics, for instance "shape".

    Raises:
        QMRIError: pyradiomics is not installed.
    """
    try:
        with warnings.catch_warnings():
            # The wrappers of SimpleITK warn of themselves.
            warnings.simplefilter("ignore")
            return import_module(f"radiomics.{name}")
    except ImportError as error:
        raise QMRIError(
            field="pyradiomics",
            found=f"not installed ({error})",
            expected="pyradiomics 3.0.1: radiomic features of lesions",
            remedy=(
                "pip install numpy versioneer setuptools wheel, then "
                "pip install --no-build-isolation pyradiomics==3.0.1"
            ),
        ) from error
