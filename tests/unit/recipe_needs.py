"""What a recipe in configs/ says it needs."""

from __future__ import annotations

import re
from pathlib import Path


def needs(recipe: Path) -> tuple[float, int, float]:
    """GPUs at least, GB of each, and CPUs at least, of a recipe's first line: `# needs: 7..16 GPUs of 80 GB, 28.6..33 CPUs`."""
    line = recipe.read_text(encoding="utf-8").splitlines()[0]
    number = r"(\d+(?:\.\d+)?)(?:\.\.[\d.]+)?"
    found = re.fullmatch(rf"# needs: {number} GPUs? of (\d+) GB, {number} CPUs?", line)
    assert found is not None, line
    return float(found[1]), int(found[2]), float(found[3])
