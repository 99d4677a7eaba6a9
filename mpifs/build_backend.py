"""Builds the package: setuptools, with the manual pages made before it looks for them.

Named in pyproject.toml; lies in the package so that it is there wherever the package is built from.
Nothing of mpifs imports it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from setuptools import build_meta

get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
get_requires_for_build_wheel = build_meta.get_requires_for_build_wheel
get_requires_for_build_editable = build_meta.get_requires_for_build_editable
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable
build_sdist = build_meta.build_sdist
_PAGES = Path("build", "man1")
"""As in pyproject.toml; the builder's working directory is the project's folder."""


def build_wheel(*args: Any, **settings: Any) -> str:
    """See PEP 517."""
    _make_pages()
    return str(build_meta.build_wheel(*args, **settings))


def build_editable(*args: Any, **settings: Any) -> str:
    """See PEP 660."""
    _make_pages()
    return str(build_meta.build_editable(*args, **settings))


def _make_pages() -> None:
    from mpifs.cli.manual import write_pages

    shutil.rmtree(_PAGES, ignore_errors=True)
    write_pages(_PAGES)
