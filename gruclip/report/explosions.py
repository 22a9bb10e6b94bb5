"""How many iterations of a run exploded while the Jacobian at the origin was stable, and how many while it was not.

An iteration counts by the spectral radius that was computed last before it (every ``trainer.radius_every`` iterations;
the largest over the layers): ``below`` 1, or ``above`` where it is 1 or more, or not a number. Those before the first
radius count nowhere.
"""

from __future__ import annotations

import csv
from pathlib import Path

from gruclip.errors import UserError
from gruclip.training.explosions import ExplosionDetector

#: Counts of a run's iterations, and of those whose gradient exploded.
COUNTS = ("iterations.below", "iterations.above", "explosions.below", "explosions.above")


def count(path: Path) -> dict[str, float | None]:
    """`COUNTS` of a run's steps.csv."""
    counts, detector, side = dict.fromkeys(COUNTS, 0), ExplosionDetector(), None
    try:
        with path.open(newline="") as file:
            for line in csv.DictReader(file, strict=True):
                exploded = detector.observe(int(line["step"]), float(line["grad_norm"]))
                if side is not None:
                    counts[f"iterations.{side}"] += 1
                    counts[f"explosions.{side}"] += exploded
                radii = [value for name, value in line.items() if name.startswith("spectral_radius_l")]
                if all(radii):
                    # NaN: a weight is not finite.
                    side = "below" if all(float(radius) < 1 for radius in radii) else "above"
    except (OSError, KeyError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); move the folder away to run it anew") from error
    return {**counts}
