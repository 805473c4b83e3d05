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


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("data", "env"), [("none", "pusht"), ("xarm", "xarm")], ids=["from nothing", "from a dataset"])
def test_roboreel_learns_online_goes_on_and_evaluates(data: str, env: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--policy", "tdmpc", "--dataset", data, "--output-dir", str(out), *POLICIES["tdmpc"]]
    options += ["--env", env, "--eval-episodes", "1", "--eval-max-steps", "6", "--device", "cpu", "--batch-size", "4"]
    options += ["--online-buffer-capacity", "30", "--online-buffer-seed-size", "10", "--save-every", "3"]
    options += ["--online-rollout-n-episodes", "1", "--online-steps-between-rollouts", "2", "--num-workers", "1"]
    if data == "none":
        options += ["--env-options", "obs_type=environment_state_agent_pos"]
    else:
        command("-m", "roboreel", "import", str(CASES[3].folder), str(tmp_path / data), "--quiet", home=tmp_path)
        options[3] = str(tmp_path / data)
        options += ["--env-fps", "15"]
    before = 0 if data == "none" else 2
    first = ["--steps", str(before + 3), "--online-steps", "3"]
    command("-m", "roboreel", "train", *options, *first, home=tmp_path)
    then = ["--steps", str(before + 5), "--online-steps", "5", "--resume"]
    command("-m", "roboreel", "train", *options, *then, home=tmp_path)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, before + 6))
    rolled = [json.loads(line)["step"] for line in (out / "rollouts.jsonl").read_text().splitlines()]
    assert sorted({*rolled}) == [before, before + 2, before + 4]
    assert (out / "checkpoints" / "last" / "online_buffer").is_dir()
    if data == "none":
        measured = ["--n-episodes", "1", "--max-steps", "4", "--n-envs", "1", "--save-dataset", str(tmp_path / "kept")]
        told = ["--env", env, "--env-options", "obs_type=environment_state_agent_pos", "--device", "cpu"]
        command(
            *("-m", "roboreel", "eval", "--checkpoint", str(out), "--output-dir", str(tmp_path / "measured")),
            *(*told, *measured),
            home=tmp_path,
        )
        command("-m", "roboreel", "info", str(tmp_path / "kept"), home=tmp_path)
    else:
        evaluate(out, CASES[3], tmp_path / "measured", tmp_path)
