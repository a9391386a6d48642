"""A server: its hub and sockets put together, started, listening, and ended."""

from eyewall.server.server import Server

__all__ = ["Server"]
