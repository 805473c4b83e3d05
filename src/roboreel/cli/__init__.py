"""The command `roboreel`."""

from roboreel.cli.main import main

__all__ = ["main"]
