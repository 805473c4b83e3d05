"""The built-in policies."""

from roboreel.policies.bc import BCConfig, BCPolicy

__all__ = ["BCConfig", "BCPolicy"]
