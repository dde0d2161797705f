"""What the installer leaves."""

from __future__ import annotations

import sysconfig
from importlib.util import cache_from_source
from pathlib import Path


def test_packages_are_compiled_also_those_that_nobody_has_imported_yet() -> None:
    """Where Python may not write bytecode a worker would else compile torch at each start."""
    sources = list(Path(sysconfig.get_path("purelib")).rglob("*.py"))
    assert len(sources) > 1_000
    missing = [each for each in sources if not Path(cache_from_source(str(each))).exists()]
    assert len(missing) < len(sources) / 100, missing[:10]  # a few are for later versions of Python
