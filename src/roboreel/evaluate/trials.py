"""Try the checkpoints of a run out while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboreel.evaluate.acting import check_fits
from roboreel.evaluate.options import EvalConfig
from roboreel.evaluate.running import evaluate, make_simulator
from roboreel.policies import BCPolicy


@dataclass(frozen=True)
class TrialOptions:
    """Where the checkpoints of a run are tried."""

    env: str | None = None
    """Try each checkpoint in this environment: pusht, xarm, aloha, or an id of gymnasium's; see `roboreel eval`."""
    env_options: tuple[str, ...] = ()
    """The environment's own, NAME=VALUE each."""
    env_keys: tuple[str, ...] = ()
    """What is kept of its observations, KEY=NAME each; default: all."""
    env_fps: float | None = None
    """Steps a second (Hz), where the environment does not tell, or tells another rate."""
    eval_episodes: int = 10
    """Episodes a trial, of the same seeds in each; 0: no trials, as where only the online steps want an environment."""
    eval_envs: int = 5
    """Environments at once; 1: in this process."""
    eval_videos: int = 1
    """Videos a trial, of its first episodes; 0 where the environment draws no pictures."""
    eval_max_steps: int | None = None
    """Steps after which an episode is cut; default: as the environment is registered."""


class Trials:
    """What a run's checkpoints do in an environment; each leaves `eval/NNNNNN/eval.json` and a video."""

    def __init__(self, options: TrialOptions, output_dir: Path, device: str) -> None:
        self._options, self._output_dir, self._device = options, output_dir, device
        self._config(output_dir)  # refuses what cannot be

    def _config(self, folder: Path) -> EvalConfig:
        options = self._options
        assert options.env is not None
        return EvalConfig(
            self._output_dir / "eval" / folder.name,
            folder,
            env=options.env,
            env_options=options.env_options,
            env_keys=options.env_keys,
            env_fps=options.env_fps,
            n_episodes=options.eval_episodes,
            n_envs=options.eval_envs,
            max_steps=options.eval_max_steps,
            n_videos=options.eval_videos,
            device=self._device,
        )

    def check(self, policy: Any, fps: float) -> None:
        """Raise `ConfigError` where a policy, of data of `fps` frames a second, does not fit the environment.

        Also where that draws no pictures, and videos are wanted.
        """
        with make_simulator(self._config(self._output_dir)) as envs:
            if isinstance(policy, BCPolicy):
                check_fits(policy, envs)
            else:
                from roboreel.train.lerobot.actor import check_fits as check_lerobot  # which wants lerobot

                check_lerobot(policy.config, fps, envs)
            if self._options.eval_videos and not envs.camera_keys:
                envs.reset(dict.fromkeys(range(envs.n_envs), 0))
                envs.render()

    def run(self, folder: Path) -> dict[str, float]:
        """Try a checkpoint; return the mean of each number, as {"eval_success": 0.5}."""
        result = evaluate(self._config(folder))
        return {f"eval_{name}": spread.mean for name, spread in result.summary.items()}
