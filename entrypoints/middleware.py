"""Ready-made middleware for ``server.use``, groups of routes and single handlers.

>>> server.use(recover(), log(), rate_limit(TokenBucketLimiter(rate=10, burst=20)))
"""

from eyewall.application.dispatch.middleware import (
    auth_required,
    log,
    rate_limit,
    recover,
    trace,
    validate,
)

__all__ = ["auth_required", "log", "rate_limit", "recover", "trace", "validate"]
