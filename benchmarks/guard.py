"""Fails when a hot path has become slower than it was: python -m benchmarks.guard [--base REF | --record]

What is compared are ratios to a reference taken in the same run (`benchmarks.ratios_core`), so the machine cancels out.
With `--base`, the code of that git revision and this one take turns; else the ratios of `baseline.json` stand for the
base, on the same CPU path only. A path fails when its best round here is 20 % behind the base's worst.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from blobtee.core import cpu_features

HERE = Path(__file__).parent
BASELINE = HERE / "baseline.json"
SLACK = 0.8
TURNS = 3
Ratios = dict[str, float]


def measure(tree: Path) -> Ratios:
    """One turn in `tree`: its own code, by this benchmark."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree / "src"), str(HERE.parent)])}
    command = [sys.executable, "-m", "benchmarks.ratios_core", "--json", "5"]
    output = subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout
    found: Ratios = json.loads(output)
    return found


def checkout(revision: str, tree: Path) -> None:
    """`revision` with its extension built, in `tree`."""
    subprocess.run(["git", "worktree", "add", "--detach", "--force", tree, revision], cwd=HERE, check=True)
    subprocess.run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], cwd=tree, check=True)


def turns(base: Path | None) -> tuple[list[Ratios], list[Ratios]]:
    old, new = [], []
    for _ in range(TURNS):
        if base is not None:
            old.append(measure(base))
        new.append(measure(HERE.parent))
    return old, new


def recorded() -> list[Ratios]:
    """The committed ratios, as if the base had had one turn."""
    baseline = json.loads(BASELINE.read_text())
    if baseline["sha256"] != cpu_features().sha256:
        print(f"nothing to compare: the baseline was taken on the {baseline['sha256']} path")
        return []
    return [baseline["ratios"]]


def verdict(old: list[Ratios], new: list[Ratios]) -> int:
    """Prints a line for each path; the number of those that are too slow."""
    slower = 0
    for name in sorted(set(old[0]) & set(new[0])):
        worst, best = min(turn[name] for turn in old), max(turn[name] for turn in new)
        fails = best < SLACK * worst
        slower += fails
        print(f"{'SLOWER' if fails else 'ok':6}  {name:70} {worst:6.2f} -> {best:6.2f}")
    return slower


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--base", metavar="REF", help="a git revision to take turns with")
    choice.add_argument("--record", action="store_true", help="write baseline.json from this machine")
    options = parser.parse_args()
    if options.record:
        _, new = turns(None)
        worst = {name: round(min(turn[name] for turn in new), 3) for name in new[0]}
        BASELINE.write_text(json.dumps({"sha256": cpu_features().sha256, "ratios": worst}, indent=1) + "\n")
        return
    with tempfile.TemporaryDirectory(prefix="blobtee-base-") as folder:
        tree = Path(folder, "tree") if options.base else None
        try:
            if tree is not None:
                checkout(options.base, tree)
            old, new = turns(tree)
        finally:
            if tree is not None:
                subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=HERE, check=False)
    old = old or recorded()
    if old and verdict(old, new):
        raise SystemExit("slower than the base by more than a fifth")


if __name__ == "__main__":
    main()
