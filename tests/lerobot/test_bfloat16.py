"""`roboreel train --amp`: every policy computes in bfloat16 and keeps its weights in float32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.policies.factory import get_policy_class

from roboreel.train import train
from tests.lerobot.test_training import OPTIONS, config_of, write_episodes


@pytest.mark.parametrize("policy", list(OPTIONS))
def test_a_policy_in_bfloat16(policy: str, tmp_path: Path) -> None:
    config = config_of(policy, write_episodes(tmp_path / "pushing"), tmp_path / "run", amp=True, save_every=4)
    train(config)
    told = (config.output_dir / "metrics.jsonl").read_text().splitlines()
    assert np.isfinite([json.loads(line)["loss"] for line in told]).all()
    kept = get_policy_class(policy).from_pretrained(config.output_dir / "checkpoints" / "000004" / "pretrained_model")
    assert {value.dtype for value in kept.parameters()} == {torch.float32}
