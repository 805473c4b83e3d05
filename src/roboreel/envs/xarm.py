"""gym-xarm 0.1.1 on gymnasium 1.0 and newer, whose renderer is told camera and size when it is made.

Its resets, too, which otherwise carry something of one episode into the next.
"""

from __future__ import annotations

import inspect
from typing import Any

from roboreel._optional import require

CAMERA = "camera0"


def bridge() -> None:
    """Have gym-xarm draw through the gymnasium that is installed, and begin episodes from their seeds alone.

    gym-xarm hands `camera_name` to `MujocoRenderer.render` and has the size read from the model; from gymnasium 1.0 on
    `MujocoRenderer` takes both itself, and every observation with pictures is a TypeError. Its reset sets positions and
    speeds, and leaves the controls and the solver's forces as the episode before had them last.

    Raises:
        MissingDependencyError: gym-xarm is not installed.
    """
    base: Any = require("gym_xarm.tasks.base", extra="sim-xarm", purpose="rolling out in xarm")
    reset_sim = base.Base._reset_sim
    if reset_sim.__module__ == __name__:
        return  # called before

    def reset_all(self: Any) -> Any:
        self._mujoco.mj_resetData(self.model, self.data)
        return reset_sim(self)

    base.Base._reset_sim = reset_all
    renderer = base.MujocoRenderer
    if "camera_name" in inspect.signature(renderer.render).parameters:
        return

    def initialize_renderer(self: Any, renderer_type: str) -> Any:
        sizes = {
            "observation": (self.observation_width, self.observation_height),
            "visualization": (self.visualization_width, self.visualization_height),
        }
        width, height = sizes[renderer_type]
        return renderer(self.model, self.data, width=width, height=height, camera_name=CAMERA)

    def render(self: Any, renderer: Any) -> Any:
        self._render_callback()
        picture = renderer.render(self.render_mode)
        return None if picture is None else picture.copy()

    base.Base._initialize_renderer, base.Base._render = initialize_renderer, render
