"""Bytes that nobody would send, and what must be true of them all the same."""
