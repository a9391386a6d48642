"""Talking to the other nodes, and knowing which of them are alive."""
