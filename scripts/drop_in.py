"""LeRobot's own training loop on LeRobotDataset and on ours: the same losses, and how long each waited for data.

    python -m scripts.drop_in                    # in the environment of make test-lerobot; some 3 minutes
    python -m scripts.drop_in --only act tdmpc
    python -m scripts.write_drop_in              # docs/lerobot.md

The policies are small, so that a step on a CPU takes well under a second; the losses are compared bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "drop_in.json"
SAMPLE = ROOT / "examples" / "data" / "pusht"
PACKAGES = ("lerobot", "torch", "torchvision", "accelerate", "av", "numpy")

POLICIES: dict[str, tuple[str, ...]] = {
    "act": (
        "--policy.pretrained_backbone_weights=null",
        "--policy.chunk_size=20",
        "--policy.n_action_steps=20",
        "--policy.dim_model=64",
        "--policy.n_heads=4",
        "--policy.dim_feedforward=128",
    ),
    "diffusion": (
        "--policy.pretrained_backbone_weights=null",
        "--policy.down_dims=[32,64]",
        "--policy.diffusion_step_embed_dim=32",
        "--policy.num_inference_steps=4",
    ),
    "vqbet": (
        "--policy.pretrained_backbone_weights=null",
        "--policy.n_vqvae_training_steps=3",
        "--policy.gpt_input_dim=64",
        "--policy.gpt_output_dim=64",
        "--policy.gpt_hidden_dim=64",
        "--policy.gpt_n_layer=2",
        "--policy.gpt_n_head=4",
    ),
    "tdmpc": (
        "--policy.mlp_dim=64",
        "--policy.cem_iterations=2",
        "--policy.n_gaussian_samples=32",
        "--policy.n_pi_samples=4",
        "--policy.n_elites=8",
    ),
}
"""Policy → options that make it small."""


@dataclass(frozen=True)
class Step:
    """What LeRobot's loop measured in one step."""

    loss: float
    grad_norm: float
    data_s: float
    """Until the batch was there and normalised."""
    update_s: float


def read_results() -> dict[str, Any]:
    """Return {policy: figures}."""
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return results


def policy_options(policy: str) -> list[str]:
    return [f"--policy.type={policy}", *POLICIES[policy], "--policy.device=cpu", "--policy.push_to_hub=false"]


def train_recorded(options: Sequence[str]) -> list[Step]:
    """Run `lerobot-train` in this process and return its steps, their losses unrounded."""
    from lerobot.scripts import lerobot_train

    steps: list[Step] = []
    update_policy = lerobot_train.update_policy

    def recorded(tracker: Any, *args: Any, **kwargs: Any) -> Any:
        done = update_policy(tracker, *args, **kwargs)
        steps.append(Step(tracker.loss.val, tracker.grad_norm.val, tracker.dataloading_s.val, tracker.update_s.val))
        return done

    argv, sys.argv = sys.argv, ["lerobot-train", *options]
    lerobot_train.update_policy = recorded
    try:
        lerobot_train.main()
    finally:
        sys.argv, lerobot_train.update_policy = argv, update_policy
    return steps


def compare(policy: str, steps: int, batch_size: int, folder: Path) -> dict[str, Any]:
    """Train on LeRobotDataset, on ours with its video as it is, and with raw pixels."""
    import roboreel.lerobot

    options = [
        "--dataset.repo_id=lerobot/pusht",
        f"--dataset.root={SAMPLE}",
        "--dataset.video_backend=pyav",
        f"--steps={steps}",
        f"--batch_size={batch_size}",
        "--num_workers=0",
        "--save_checkpoint=false",
        *policy_options(policy),
    ]
    runs: dict[str, list[Step]] = {}
    for name in ("lerobot", "video", "pixels"):
        with contextlib.ExitStack() as stack:
            if name != "lerobot":
                place, decoded = folder / name, name == "pixels"
                stack.enter_context(roboreel.lerobot.install(storage_dir=place, decode_images=decoded))
            runs[name] = train_recorded([*options, f"--output_dir={folder / policy / name}"])
    losses = {name: [(step.loss, step.grad_norm) for step in taken] for name, taken in runs.items()}
    return {
        "steps": steps,
        "batch_size": batch_size,
        "equal": {name: losses[name] == losses["lerobot"] for name in ("video", "pixels")},
        "losses": [step.loss for step in runs["lerobot"]],
        "data_s": {name: _median(taken, "data_s") for name, taken in runs.items()},
        "update_s": {name: _median(taken, "update_s") for name, taken in runs.items()},
    }


def _median(steps: Sequence[Step], name: str) -> float:
    """Of all steps but the first, in which files are opened and kernels chosen."""
    return round(float(statistics.median(asdict(step)[name] for step in steps[1:])), 6)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=8)
    asked = parser.parse_args()
    results = read_results()
    with tempfile.TemporaryDirectory() as folder:
        for policy in asked.only:
            began = time.perf_counter()
            found = compare(policy, asked.steps, asked.batch_size, Path(folder))
            results[policy] = {
                **found,
                "seconds": round(time.perf_counter() - began, 1),
                "date": dt.datetime.now(dt.UTC).date().isoformat(),
                "machine": f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs",
                "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            }
            RESULTS.write_text(
                json.dumps({name: results[name] for name in POLICIES if name in results}, indent=1) + "\n"
            )
            print(policy, found["equal"], found["data_s"], found["update_s"])


if __name__ == "__main__":
    main()
