"""Two processes train one of LeRobot's policies, by torchrun and by accelerate, and make the steps of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from roboreel import ConfigError
from roboreel.train import train
from roboreel.train.online.training import train_online
from tests.lerobot import test_online as online
from tests.lerobot.test_training import OPTIONS, config_of, write_episodes

STILL = ("dropout=0", "use_vae=false", "chunk_size=1", "n_action_steps=1")
"""Nothing is drawn: what two processes draw is not what one draws. Nor is there an action beyond an episode's end: from
0.6 on the loss is a mean over the others, of which two halves of a batch need not have as many."""
LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    # with --cpu it would start one, or ask for MPI
    "accelerate": (
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--main_process_port", "0"),
    ),
}


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_act_by_two(launcher: str, tmp_path: Path) -> None:
    dataset = write_episodes(tmp_path / "pushing")
    train(config_of("act", dataset, tmp_path / "one", *STILL))
    given = [f"--policy.{option}" for option in (*OPTIONS["act"], *STILL)]
    run = ["--dataset", str(dataset), "--output-dir", str(tmp_path / "two"), "--steps", "4", "--batch-size", "4"]
    command = [*LAUNCHERS[launcher], "-m", "roboreel", "train", "--policy", "act", *run, *given]
    options = ["--save-every", "2", "--num-workers", "0", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command, *options], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes" in done.stdout
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert (tmp_path / "two" / "checkpoints" / "last" / "pretrained_model" / "model.safetensors").is_file()


def test_both_have_the_same_weights_whatever_each_has_drawn(tmp_path: Path) -> None:
    """Noise, critics and a codebook that follows what it is shown differ between them until they are shared."""
    dataset = write_episodes(tmp_path / "pushing")
    command = [*LAUNCHERS["torchrun"], "-m", "tests.lerobot.in_two_processes", str(dataset), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"weights of {rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert set(first) == set(OPTIONS)


def test_online_by_two_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--online-steps: one process rolls out and learns, and 2 were launched"):
        train_online(online.config_of(tmp_path / "run"), online.OPTIONS, online.SCENE)
    assert not (tmp_path / "run").exists()
