"""Health and counters over HTTP, beside the sockets.

    python examples/health_and_stats.py
    curl localhost:8080/healthz     # the process runs
    curl localhost:8080/readyz      # it takes traffic: 503 while it drains
    curl localhost:8080/stats       # the counters of the hub, as JSON
    curl -X DELETE localhost:8080/stats

The first two come with every server that listens. With the extra eyewall[prometheus],
Server(metrics=PrometheusMetrics()) adds /metrics.
"""

import os
from dataclasses import asdict, dataclass

from tornado.web import RequestHandler

from eyewall import Context, Envelope, Server

server = Server()


@dataclass
class Ping:
    text: str


@server.on("echo:ping")
async def ping(ctx: Context, msg: Envelope[Ping]) -> None:
    await ctx.send("echo:pong", "message", {"echo": msg.data.text})


class Stats(RequestHandler):
    """The counters; in production, allow this page to your monitoring only."""

    def get(self) -> None:
        stats = server.hub.stats()
        self.write(asdict(stats) | {"started_at": stats.started_at.isoformat()})

    def delete(self) -> None:
        server.hub.reset_stats()
        self.set_status(204)


if __name__ == "__main__":
    server.run(port=int(os.environ.get("PORT", "8080")), pages=[(r"/stats", Stats)])
