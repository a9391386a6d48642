"""From a received message to its handler and its answer."""
