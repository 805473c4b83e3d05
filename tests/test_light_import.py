"""`import roboreel` is light: what is optional or heavy loads when it is used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "av", "huggingface_hub", "pyarrow", "PIL", "gymnasium", "h5py", "zarr", "matplotlib", "tyro"}


def loaded_after(statement: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has loaded after `statement`."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_import_roboreel_loads_nothing_heavy() -> None:
    loaded = loaded_after("import roboreel")
    assert "roboreel" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("name", ["LeRobotDatasetV2", "compute_sampler_weights", "PrioritizedSampler"])
def test_the_public_face_needs_neither_torch_nor_the_hub(name: str) -> None:
    loaded = loaded_after(f"from roboreel import {name}")
    assert loaded & {"torch", "huggingface_hub", "gymnasium", "matplotlib", "tyro"} == set()


def test_a_heavy_import_would_be_seen() -> None:
    assert "PIL" in loaded_after("import roboreel, PIL.Image") & HEAVY
