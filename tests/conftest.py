"""What every test may ask for: real data, the sample, random numbers that stay its own."""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import pytest_timeout

from tests import hub_server
from tests.hub_state import Hub

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a shell's background jobs, and of all that these start
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything imports them: no window, no display, no network.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # a test a core: threads that wait for each other by spinning took minutes
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: it is a timed assertion, and a shared machine breaks it. The blob reproduces a failure elsewhere.
hypothesis.settings.register_profile("roboreel", deadline=None, print_blob=True)
hypothesis.settings.load_profile("roboreel")

REPOSITORY = Path(__file__).parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: Any, settings: pytest_timeout.Settings) -> bool:
    """Have a timeout count the seconds that the machine was awake: one that is paused for an hour is no hung test."""
    ended = threading.Event()

    def watch() -> None:
        for _ in range(math.ceil(settings.timeout)):
            if ended.wait(1.0):  # a pause, however long, is over with one of them
                return
        pytest_timeout.timeout_timer(item, settings)

    watcher = threading.Thread(target=watch, name="timeout", daemon=True)

    def cancel() -> None:
        ended.set()
        watcher.join()

    item.cancel_timeout = cancel  # called by the plugin
    watcher.start()
    return True


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings of others, beside the checkout; most carry no licence to be copied into it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real recordings are not here: {folder}")
    return folder


@pytest.fixture(scope="session")
def sample_dir() -> Path:
    """The whole PushT set as a LeRobot v3.0 folder: part of the repository, so its absence is a failure."""
    folder = REPOSITORY / "examples" / "data" / "pusht"
    assert folder.is_dir(), f"the sample dataset is part of the repository and missing: {folder}"
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that the client asks in the place of huggingface.co, with nothing on it."""
    pytest.importorskip("huggingface_hub")
    constants = pytest.importorskip("huggingface_hub.constants")
    with hub_server.Running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        # what the client has read from the environment when it was imported
        for name, value in (
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),
            ("HF_HUB_CACHE", str(tmp_path / "hf" / "hub")),
            ("HF_TOKEN_PATH", str(tmp_path / "hf" / "token")),
        ):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr("roboreel.hub.client.FIRST_WAIT_S", 0.01)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # the client's own back-off
        yield hub


@pytest.fixture(autouse=True)
def rng_state() -> Iterator[None]:
    """Put the global random states back, so that no test draws what another one left."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - it is the legacy state that is global
    torch = sys.modules.get("torch")  # importing it for the tests that do not need it would cost seconds
    torch_state = torch.get_rng_state() if torch else None
    yield
    random.setstate(python)
    np.random.set_state(legacy)  # noqa: NPY002
    if torch:
        torch.set_rng_state(torch_state)


@pytest.fixture(autouse=True)
def _gpu(request: pytest.FixtureRequest) -> None:
    """Skip a `gpu` test without a GPU, but fail it where one is promised: a silent skip there would hide a loss."""
    if request.node.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        if os.environ.get("ROBOREEL_GPU") == "1":
            pytest.fail("ROBOREEL_GPU=1 promises a GPU, and torch sees none")
        pytest.skip("no CUDA device")
