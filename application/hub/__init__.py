"""The hub and the context: what handlers and applications call."""
