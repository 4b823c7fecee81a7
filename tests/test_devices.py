"""Without a card: nothing mixes tensors of the CPU and of another device (see pretend.py and pretend_runs.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_product_runs_on_a_device_that_is_not_the_cpu(tmp_path: Path) -> None:
    """Sampling, all stages, stage 4, and the bodies of tests/gpu."""
    from torch.utils import backend_registration

    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("needs a PyTorch that takes a device written in Python")
    script = Path(__file__).parent / "pretend_runs.py"
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
