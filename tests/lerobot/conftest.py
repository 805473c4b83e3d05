"""These tests are run by `make test-lerobot`, beside a lerobot; where there is none they are not even imported.

There pytest fails when it finds nothing to run, so that an environment without lerobot is no silent success.
"""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("lerobot") else ["test_*.py", "in_*.py"]
