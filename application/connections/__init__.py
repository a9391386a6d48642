"""The connections of this node: their registry, limits, hooks and counters."""
