"""The environment of `make test-lerobot` is made once, whole, and kept by what its requirements say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from scripts.kept_environment import kept_environment, main, place_of

THIS = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("scripts.kept_environment.NEEDED_BYTES", 0)  # those of the test are small
    path = tmp_path / "few.txt"
    path.write_text(f"# python {THIS}\n")
    return path


def test_what_an_interrupted_install_left_is_made_anew_and_what_is_whole_is_kept(requirements: Path) -> None:
    place = place_of(requirements)
    assert place.parent == requirements.parent / "cache" / "roboreel"
    place.mkdir(parents=True)
    (place / "half").touch()
    assert kept_environment(requirements, []) == place
    assert not (place / "half").exists()
    command = [str(place / "bin" / "python"), "-c", "import sys; print(sys.prefix)"]
    assert Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()) == place
    (place / "kept").touch()
    assert kept_environment(requirements, ["--an-option-that-pip-does-not-know"]) == place
    assert (place / "kept").exists()


def test_other_requirements_have_another_place(requirements: Path) -> None:
    first = place_of(requirements)
    requirements.write_text(f"# python {THIS}\n# of no consequence\n")
    assert place_of(requirements) == first
    requirements.write_text(f"# python {THIS}\nnumpy\n")
    assert place_of(requirements) != first


def test_what_cannot_be_made_says_why(requirements: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requirements.write_text("# python 3.999\n")
    monkeypatch.setattr(sys, "argv", ["kept_environment", str(requirements)])
    with pytest.raises(SystemExit, match=r"needs Python 3\.999, and none of python3\.999 on PATH") as failure:
        main()
    assert failure.value.code != 0
    assert not (place_of(requirements) / "installed").exists()
