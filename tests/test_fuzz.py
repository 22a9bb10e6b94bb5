"""A few hundred of the odd inputs that ``tests/soak/fuzz_inputs.py`` tries by the thousand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "soak"))

from fuzz_inputs import fuzz


def test_no_odd_input_gives_a_traceback_or_leaves_a_file(data_root: Path) -> None:
    done = fuzz(200, seed=1, data=data_root)
    assert [fault for attack in done for fault in attack.lost] == []
    assert all(attack.refused for attack in done)
