"""Each state that `replay` draws from a recording, in a folder, as after another start of the machine."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.integration.power.replay import Cut, Recording

CUTS = int(os.environ.get("BLOBTEE_POWER_CUTS", "60"))
"""States of each recording; the full run has 5,000."""

SEED = int(os.environ.get("BLOBTEE_POWER_SEED", "1"))


def each_cut(recording: Recording, folder: Path, check: Callable[[Path, Cut], object], *, since: int = 0) -> None:
    """Have `check` look at what is left in `folder`, and in which of the states it is, after cuts from `since` on."""
    root = folder / "after"
    for number in range(CUTS):
        seed = SEED * 1_000_000 + number
        draw = random.Random(seed)
        cut = recording.cut(draw.randint(since, len(recording.events)), draw)
        _make(root, cut)
        try:
            check(root, cut)
        except BaseException as error:
            error.add_note(f"seed {seed}: cut at {cut.time} of {since} to {len(recording.events)}: {sorted(cut.files)}")
            raise
        shutil.rmtree(root)


def _make(root: Path, cut: Cut) -> None:
    for name in cut.folders:
        (root / name).mkdir(parents=True, exist_ok=True)
    for path, content in cut.files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
