"""The environment that the other tests here stand on is the one that is pinned."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

import roboreel

ROOT = Path(__file__).parents[2]
PINS = dict(
    line.split(";")[0].strip().split("==")
    for line in (ROOT / "requirements" / "lerobot.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line and not line.startswith("#")
)


@pytest.mark.parametrize("package", ["lerobot", "torch", "gymnasium", "gym-pusht", "gym-xarm", "gym-aloha", "mujoco"])
def test_the_version_is_the_pinned_one(package: str) -> None:
    assert version(package).partition("+")[0] == PINS[package]


def test_roboreel_is_the_one_of_this_clone() -> None:
    assert Path(roboreel.__file__).parents[2] == ROOT
