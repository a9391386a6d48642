"""Tools on top of asyncio that know nothing of messages: tasks, locks, timers, worker pools."""
