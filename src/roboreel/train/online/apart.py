"""Rollouts in a process of their own, while training goes on."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import torch

from roboreel.errors import RolloutError
from roboreel.train.online.options import OnlineOptions, Scene
from roboreel.train.online.rollouts import Rolled, Rollouts


@dataclass(frozen=True)
class Place:
    """What the process must know."""

    scene: Scene
    options: OnlineOptions
    buffer: Path
    policy: Path
    """Folder of a policy in LeRobot's layout; newer weights come with each order."""


class RolloutProcess:
    """The only writer of the buffer; it does one thing at a time, and answers when it is done."""

    def __init__(self, place: Place) -> None:
        context = multiprocessing.get_context("spawn")  # torch and OpenGL do not survive a fork
        self._end, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, place), daemon=False)
        self._process.start()
        theirs.close()
        try:
            self._answer()  # it is ready
        except BaseException:
            self.close()
            raise

    def begin(self, seeds: Sequence[int], weights: Mapping[str, Any]) -> None:
        """Have episodes rolled out with these weights."""
        packed = io.BytesIO()
        torch.save(weights, packed)
        self._end.send(("roll", list(seeds), packed.getvalue()))

    def result(self) -> list[Rolled]:
        """Wait for what was begun."""
        answer: list[Rolled] = self._answer()
        return answer

    def snapshot(self, dest: Path) -> None:
        self._end.send(("snapshot", dest))
        self._answer()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            self._end.send(("end",))  # closing tells nothing while workers of a loader, forked since, hold the pipe too
        self._end.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _answer(self) -> Any:
        try:
            kind, answer = self._end.recv()
        except (EOFError, OSError) as error:
            self._process.join(10)
            raise RolloutError(f"the process that rolls out has ended (exit code {self._process.exitcode})") from error
        if kind == "failed":
            raise RolloutError(f"the process that rolls out has failed:\n{answer}")
        return answer


def _serve(end: Connection, place: Place) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too: the trainer ends it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which closes the environments, in processes of their own
    try:
        from roboreel.train.lerobot.actor import actor_from

        torch.set_num_threads(1)  # it shares the cores with the training
        with Rollouts(place.scene, place.options, place.buffer) as rollouts:
            actor = actor_from(place.policy, rollouts.envs, torch.device("cpu"))
            end.send(("done", None))
            while True:
                try:
                    order = end.recv()
                except EOFError:  # the trainer has ended, however
                    return
                if order[0] == "end":
                    return
                if order[0] == "roll":
                    actor.load(torch.load(io.BytesIO(order[2]), map_location="cpu", weights_only=True))
                    end.send(("done", rollouts.roll(actor, order[1])))
                else:
                    rollouts.snapshot(order[1])
                    end.send(("done", None))
    except (BrokenPipeError, SystemExit):
        return
    except BaseException:  # noqa: BLE001 - told where it can be seen
        end.send(("failed", traceback.format_exc()))
