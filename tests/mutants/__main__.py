"""`python -m tests.mutants [WORD...]`: plants each bug in a copy of the tree; exit code 1 if one
survives. A word chooses the bugs whose names hold it.

The simulation runs against each; against those that it lets pass, the property tests do. Against
the bugs of the denoising steps the tests that each names run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from tests.mutants import host, planted, queue, quotas, redrives, tenants
from tests.mutants.planted import Mutant

MUTANTS = (
    *planted.MUTANTS, *host.MUTANTS, *queue.MUTANTS, *quotas.MUTANTS, *redrives.MUTANTS,
    *tenants.MUTANTS,
)  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent.parent
COPIED = ("schemas", "streams", "workers", "tests", "pyproject.toml")
NUM_SCHEDULES = 600
AT_ONCE = 2
TESTS = ("tests/properties", "tests/unit/test_stage.py", "tests/unit/test_offsets.py")


def main(words: list[str]) -> int:
    """The exit code."""
    chosen = [each for each in MUTANTS if all(word in each.name for word in words)]
    started_s = time.monotonic()
    num_survived = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for mutant, caught_by in zip(chosen, pool.map(verdict, chosen), strict=True):
            print(f"{mutant.name:58}  {caught_by or 'SURVIVED'}", flush=True)
            num_survived += caught_by is None
    took_s = time.monotonic() - started_s
    print(f"{len(chosen)} planted bugs, {num_survived} survived, {took_s:.0f} s")
    return 1 if num_survived or not chosen else 0


def verdict(mutant: Mutant) -> str | None:
    """What has caught the bug; None: nothing."""
    with tempfile.TemporaryDirectory(prefix="reel-mutant-") as folder:
        tree = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "mutants")
                shutil.copytree(source, tree / name, ignore=ignored)
            else:
                shutil.copy(source, tree / name)
        plant(mutant, tree)
        caught = None if mutant.tests else _simulation(tree)
        tests = mutant.tests or TESTS
        return caught or (_tests(tree, tests) if _are_well(tests) else None)


def plant(mutant: Mutant, tree: Path) -> None:
    """Change the file.

    Raises:
        ValueError: what is to be changed does not stand there exactly once.
    """
    file = tree / mutant.file
    text = file.read_text(encoding="utf-8")
    if (found := text.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} holds its text {found} times, not once")
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def _simulation(tree: Path) -> str | None:
    command = ["-m", "tests.simulation", "run", str(NUM_SCHEDULES), "--quick"]
    done = _python(command, tree)
    if done.returncode == 0:
        return None
    broken = re.search(r"^seed (\d+): ([\w ]+)", done.stdout, re.MULTILINE)
    if broken is None or broken[2] in ("NameError", "SyntaxError", "ImportError"):
        raise ValueError(f"planted badly: {(done.stderr or done.stdout).strip()[-500:]}")
    return f"simulation, seed {broken[1]}: {broken[2]}"


def _tests(tree: Path, tests: tuple[str, ...]) -> str | None:
    done = _python(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests], tree)
    if done.returncode == 0:
        return None
    failed = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    return f"tests, {failed[1] if failed else done.stdout.strip().splitlines()[-1][:80]}"


@cache
def _are_well(tests: tuple[str, ...]) -> bool:
    """Tests that fail without any bug catch none."""
    return _tests(ROOT, tests) is None


def _python(arguments: list[str], tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, capture_output=True, text=True, check=False
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
