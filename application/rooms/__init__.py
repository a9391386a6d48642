"""Rooms: members, roles, presence and ordered history."""
