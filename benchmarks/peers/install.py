"""Make the peers' environments, `.venv-peers-NAME` for each `requirements/peers-NAME.txt`; what is there is kept.

make bench-peers
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> None:
    pip_args = sys.argv[1:]
    for requirements in sorted((ROOT / "requirements").glob("peers-*.txt")):
        name = requirements.stem.removeprefix("peers-")
        venv = ROOT / f".venv-peers-{name}"
        if (venv / "installed").exists():
            print(f"{venv.name} is there")
            continue
        version = wanted_version(requirements)
        python = next((path for path in interpreters(version) if works(path)), None)
        if python is None:
            print(f"{venv.name} needs Python {version}, and none of python{version} on PATH and under ~/.pyenv works")
            continue
        shutil.rmtree(venv, ignore_errors=True)
        print(f"{venv.name}: {python}", flush=True)
        subprocess.run([python, "-m", "venv", venv], check=True)
        pip = [
            str(venv / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--quiet",
            *pip_args,
        ]
        subprocess.run([*pip, "-r", str(requirements)], check=True)
        lend_ffmpeg(venv)
        (venv / "installed").touch()


def wanted_version(requirements: Path) -> str:
    first = requirements.read_text().splitlines()[0]
    return first.removeprefix("# python ").strip()


def interpreters(version: str) -> Iterator[str]:
    found = shutil.which(f"python{version}")
    if found:
        yield found
    # pyenv's names on PATH fail for versions that are not chosen
    yield from (str(path) for path in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))


def works(python: str) -> bool:
    return subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True, check=False).returncode == 0


def lend_ffmpeg(venv: Path) -> None:
    """Link the FFmpeg in PyAV's wheel under the names that torchcodec looks for: not every system has one."""
    for libraries in venv.glob("lib/python3*/site-packages/av.libs"):
        links = venv / "ffmpeg"
        links.mkdir(exist_ok=True)
        for library in libraries.glob("lib*.so.*"):
            if parts := re.match(r"(lib(?:av|sw)[a-z]+)-[0-9a-f]+\.so\.(\d+)", library.name):
                (links / f"{parts[1]}.so.{parts[2]}").symlink_to(library)


if __name__ == "__main__":
    main()
