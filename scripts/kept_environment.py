"""Make the environment of a requirements file, kept between runs and clones by a hash of it, and print its Python.

python -m scripts.kept_environment requirements/lerobot.txt
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.install import interpreters, wanted_version, works
from filelock import FileLock

NEEDED_BYTES = 12 * 10**9
"""What lies there in the end, and what pip unpacks beside it meanwhile."""


def main() -> None:
    requirements, pip_args = Path(sys.argv[1]), sys.argv[2:]
    try:
        print(kept_environment(requirements, pip_args) / "bin" / "python")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"the environment of {requirements} cannot be made: {error}")


def kept_environment(requirements: Path, pip_args: list[str]) -> Path:
    """Return the directory of the environment; what is there whole is taken as it is."""
    place = place_of(requirements)
    # The scripts of an environment name the directory that they were installed into, so it is made where it will be:
    # the mark, set last, tells a whole one from what an interrupted pip left.
    whole = place / "installed"
    if whole.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):  # two clones want the same one
        if not whole.exists():
            make(place, requirements, pip_args)
            whole.touch()
    return place


def place_of(requirements: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "roboreel"
    first, *rest = requirements.read_bytes().splitlines()
    asked = [first, *(line for line in rest if not line.startswith(b"#"))]  # a comment is worth no new installation
    digest = hashlib.sha256(b"\n".join(asked)).hexdigest()
    return cache / f"{requirements.stem}-{digest[:16]}"


def make(place: Path, requirements: Path, pip_args: list[str]) -> None:
    shutil.rmtree(place, ignore_errors=True)
    version = wanted_version(requirements)
    python = next((path for path in interpreters(version) if works(path)), None)
    if python is None:
        raise OSError(f"it needs Python {version}, and none of python{version} on PATH and under ~/.pyenv works")
    free = shutil.disk_usage(place.parent).free
    if free < NEEDED_BYTES:
        raise OSError(
            f"{place.parent} has {free / 1e9:.1f} GB free and {NEEDED_BYTES / 1e9:.0f} GB are needed; "
            "make room there, or name another place: XDG_CACHE_HOME=/big/disk make test-lerobot"
        )
    others = sorted(path.name for path in place.parent.glob(f"{requirements.stem}-*") if path.is_dir())
    told = f"; remove {', '.join(others)} there if no clone has those requirements any more" if others else ""
    print(f"making {place} with {python}, once for these requirements{told}", file=sys.stderr, flush=True)
    subprocess.run([python, "-m", "venv", place], check=True, stdout=sys.stderr)
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *pip_args]
    subprocess.run([*pip, "-r", str(requirements)], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
