"""Which code a number comes from: versions of packages, and the commit."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def packages() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {}
    for name in ("aiflow-agents", "torch", "transformers", "ray", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def revision() -> str | None:
    """The commit of the checkout this package runs from, with a + where files were changed; None outside of a checkout."""
    here = Path(__file__).resolve().parent
    try:
        said = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    inside_site = "site-packages" in here.parts
    return said.stdout.strip() or None if said.returncode == 0 and not inside_site else None
