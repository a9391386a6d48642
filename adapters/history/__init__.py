"""Where rooms keep their messages."""

from eyewall.adapters.history.memory import MemoryHistory

__all__ = ["MemoryHistory"]
