"""pyradiomics, imported where it is needed and kept quiet."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from shared_transforms.errors import QMRIError

__all__ = ["one_thread", "pyradiomics_module", "quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Neither log messages of pyradiomics nor warnings, as long as it lasts."""
    logger = logging.getLogger("radiomics")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


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
