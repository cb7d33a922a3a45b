"""What tests of evaluations read from a run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def samples(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """A run's samples, by arm and task."""
    lines = map(json.loads, (folder / "samples.jsonl").read_text().splitlines())
    return {(line["arm"], line["task_id"]): line for line in lines}
