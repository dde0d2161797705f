"""Every planted bug still finds its place in the code; `make mutants` sees whether it is caught."""

from __future__ import annotations

import pytest

from tests.mutants.__main__ import MUTANTS, ROOT
from tests.mutants.planted import Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_text_stands_there_once(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.old != mutant.new
