"""Find the command that was typed, run it, and end with one line where something is wrong.

A command's module is imported when it is called: `roboreel info` must not wait for torch.
"""

from __future__ import annotations

import importlib
import signal
import sys
import warnings
from collections.abc import Sequence

from roboreel import __version__
from roboreel.errors import RoboreelError, RoboreelWarning

COMMANDS = {
    "import": ("roboreel.cli.importing", "take a LeRobot folder, zarr or HDF5 recordings in as a roboreel dataset"),
    "pull": ("roboreel.cli.pulling", "take a dataset in from the Hugging Face Hub"),
    "push": ("roboreel.cli.pushing", "put a dataset up on the Hugging Face Hub"),
    "info": ("roboreel.cli.info", "show what a dataset holds"),
    "forecast": ("roboreel.cli.forecasting", "say how many bytes a recording like this one will take"),
    "convert": ("roboreel.cli.converting", "store cameras as memmap, PNG or video, in place or in a copy"),
    "export": ("roboreel.cli.exporting", "write a dataset as a LeRobot folder, v3.0 or v2.1"),
    "snapshot": ("roboreel.cli.snapshotting", "copy a dataset as it stands, also while it is written"),
    "cache": ("roboreel.cli.caching", "show or clear the frames that were decoded once and kept"),
    "verify": ("roboreel.cli.verifying", "compare every byte of a dataset with its checksums"),
    "repair": ("roboreel.cli.repairing", "make a damaged dataset whole, dropping what cannot be saved"),
    "train": ("roboreel.cli.training", "train a policy on a dataset"),
    "lerobot-train": ("roboreel.cli.lerobot_training", "run LeRobot's own lerobot-train on a dataset"),
    "eval": ("roboreel.cli.evaluating", "roll a trained policy out in its environment"),
}
"""Name → module with a function `run(arguments)`, and what it does."""

USAGE_ERROR, FAILURE = 2, 1


def main(argv: Sequence[str] | None = None) -> None:
    """Run `roboreel COMMAND …`; exits with 0, 1 where the command failed, or 2 where it was typed wrongly."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return
    if arguments[0] in ("-V", "--version"):
        print(f"roboreel {__version__}")
        return
    if arguments[0] not in COMMANDS:
        print(f"roboreel: there is no command {arguments[0]!r}\n\n{_usage()}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    module, _ = COMMANDS[arguments[0]]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half done is undone, as by Ctrl-C
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", RoboreelWarning)
    try:
        importlib.import_module(module).run(arguments[1:])
    except RoboreelError as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"roboreel {arguments[0]}: {error}{notes}", file=sys.stderr)
        sys.exit(FAILURE)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # `roboreel info DIR | head`
            sys.stderr.close()
        else:
            print(f"roboreel {arguments[0]}: {error}", file=sys.stderr)
        sys.exit(FAILURE)
    except KeyboardInterrupt:
        print(f"\nroboreel {arguments[0]}: interrupted", file=sys.stderr)
        sys.exit(130)


def _usage() -> str:
    lines = [f"  {name:<13} {what}" for name, (_, what) in COMMANDS.items()]
    return "usage: roboreel COMMAND [options]\n\n" + "\n".join(lines) + "\n\nroboreel COMMAND --help shows its options."


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    print(f"warning: {message}" if category is RoboreelWarning else f"{category.__name__}: {message}", file=sys.stderr)
