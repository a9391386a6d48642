"""Sending: encode once, write to one connection or to many, report what was not taken."""
