"""The PEP 517 backend: setuptools' own, plus one question asked at build time, namely whether torch must be fetched.

A build in isolation does not see the packages of the environment it builds for. Listing torch in
``build-system.requires`` would download several GB and could compile against another torch than the one installed.
So torch is asked for only when the target environment has none; otherwise its headers are found where they are.
``TORCHSMITH_BUILD_TORCH`` names the requirement used in that case (default ``torch>=2.10``).
"""

from __future__ import annotations

import os

from setuptools.build_meta import (  # noqa: F401  (the hooks pip calls)
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.build_meta import get_requires_for_build_editable as _requires_editable
from setuptools.build_meta import get_requires_for_build_wheel as _requires_wheel

import toolchain


def _torch_if_missing() -> list[str]:
    if toolchain.find_torch_dir() is not None:
        return []
    return [os.environ.get("TORCHSMITH_BUILD_TORCH", "torch>=2.10")]


def get_requires_for_build_wheel(config_settings=None):
    return [*_requires_wheel(config_settings), *_torch_if_missing()]


def get_requires_for_build_editable(config_settings=None):
    return [*_requires_editable(config_settings), *_torch_if_missing()]
