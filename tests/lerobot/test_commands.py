"""From a LeRobot folder to a policy that acts, through the true commands: trained, taken up again, rolled out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from scripts.drop_in import POLICIES, policy_options

DATA = Path(__file__).parents[1] / "data"
PUSHT = DATA / "v3.0_pusht_image_slice"
PUSHT_ENV = ("--env.type=pusht", "--env.observation_height=96", "--env.observation_width=96", "--env.episode_length=6")
ALOHA_ENV = ("--env.type=aloha", "--env.episode_length=4")


@dataclass(frozen=True)
class Case:
    """A policy on a recording, and its environment: its name, and LeRobot's options for it; of xarm it has none."""

    policy: str
    folder: Path
    name: str
    env: tuple[str, ...]
    options: tuple[str, ...] = ()


CASES = [
    Case("act", DATA / "v3.0_aloha_sim_insertion_human_40_frames", "aloha", ALOHA_ENV, ("--batch_size=2",)),
    Case("diffusion", PUSHT, "pusht", PUSHT_ENV),
    Case("vqbet", PUSHT, "pusht", PUSHT_ENV),
    Case("tdmpc", DATA / "v1.2_xarm_lift_medium", "xarm", ()),
]


def command(*arguments: str, home: Path) -> str:
    """Run one as a user does; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={
            **os.environ,
            "HF_HOME": str(home),
            "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl"),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES, ids=[f"{case.policy}-{case.folder.name}" for case in CASES])
def test_lerobot_train_trains_evaluates_and_goes_on(case: Case, tmp_path: Path) -> None:
    out, few = tmp_path / "run", ("--eval.n_episodes=1", "--eval.batch_size=1")
    env = (*case.env, *few) if case.env else ()
    told = command(
        *("-m", "roboreel", "lerobot-train", "--dataset.repo_id=some/name", f"--dataset.root={case.folder}"),
        *(f"--output_dir={out}", "--steps=2", "--save_freq=1", "--eval_freq=2", "--log_freq=1", "--num_workers=1"),
        *("--batch_size=4", *policy_options(case.policy), *env, *case.options),
        home=tmp_path,
    )
    assert "data_s:" in told
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["000001", "000002", "last"]
    assert bool([*out.glob("eval/videos_step_*/**/*.mp4")]) == bool(case.env)

    saved = out / "checkpoints" / "last" / "pretrained_model"
    resumed = ("--resume=true", "--steps=3", "--eval_freq=0")
    told = command(
        "-m", "roboreel", "lerobot-train", f"--config_path={saved / 'train_config.json'}", *resumed, home=tmp_path
    )
    assert "step:3 " in told
    assert "step:1 " not in told
    steps = json.loads((out / "checkpoints" / "last" / "training_state" / "training_step.json").read_text())
    assert steps == {"step": 3}

    measured = tmp_path / "measured"
    if not case.env:
        evaluate(saved, case, measured, tmp_path)
    else:
        command(
            *("-m", "lerobot.scripts.lerobot_eval", f"--policy.path={saved}", "--policy.device=cpu", *env),
            f"--output_dir={measured}",
            home=tmp_path,
        )
        overall = json.loads((measured / "eval_info.json").read_text())["overall"]
        assert overall["n_episodes"] == 1


def evaluate(checkpoint: Path, case: Case, out: Path, home: Path) -> None:
    """Roll a policy out by `roboreel eval`, which looks at its checkpoint and at nothing else."""
    few = ["--n-episodes", "1", "--n-envs", "1", "--max-steps", "4", "--n-videos", "1", "--device", "cpu"]
    few += ["--env-fps", "15"] if case.name == "xarm" else []  # the recording's
    command(
        *(
            "-m",
            "roboreel",
            "eval",
            "--checkpoint",
            str(checkpoint),
            "--env",
            case.name,
            "--output-dir",
            str(out),
            *few,
        ),
        home=home,
    )
    assert len(json.loads((out / "eval.json").read_text())["episodes"]) == 1
    assert len([*out.glob("videos/*.mp4")]) == 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES, ids=[f"{case.policy}-{case.name}" for case in CASES])
def test_roboreel_imports_trains_goes_on_and_evaluates(case: Case, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    command("-m", "roboreel", "import", str(case.folder), str(data), "--quiet", home=tmp_path)
    train = ("-m", "roboreel", "train", "--dataset", str(data), "--output-dir", str(out), "--policy", case.policy)
    options = (
        "--batch-size",
        "2",
        "--num-workers",
        "1",
        "--device",
        "cpu",
        "--save-every",
        "1",
        *POLICIES[case.policy],
    )
    command(*train, "--steps", "2", *options, home=tmp_path)
    command(*train, "--steps", "3", *options, "--resume", home=tmp_path)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert (out / "curves.png").exists()
    evaluate(out, case, tmp_path / "measured", tmp_path)
