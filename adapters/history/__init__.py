"""Stores for the history of rooms."""

from eyewall.adapters.history.memory import MemoryHistory

__all__ = ["MemoryHistory"]
