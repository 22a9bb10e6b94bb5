from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gruclip.kernels import fused


@pytest.fixture(scope="module")
def interpreted() -> Iterator[None]:
    """Triton's kernels for the tests of a module: by its interpreter, or where there is a GPU as they are."""
    if not fused._installed():
        pytest.fail("needs triton, of the dev extra: pip install triton==3.6.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "INTERPRETED", not torch.cuda.is_available())
        yield
