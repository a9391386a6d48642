"""A hub in an existing Tornado application, whose pages send to the clients.

    python examples/embedding.py
    python -m websockets ws://localhost:8080/ws
    curl -d text="deployed" localhost:8080/news

The third line posts a text; the second, a client in another window, shows it.
"""

import asyncio
import os
import signal

from tornado.web import Application, RequestHandler

from eyewall import Server

server = Server()


class News(RequestHandler):
    """A page of the application: posts are broadcast to all clients."""

    async def post(self) -> None:
        text = self.get_body_argument("text")
        reached = await server.hub.broadcast("news", "message", {"text": text})
        self.write({"reached": reached})


async def main() -> None:
    port = int(os.environ.get("PORT", "8080"))
    app = Application([(r"/news", News), *server.routes("/ws")])
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    await server.start()  # what runs beside the sockets
    http = app.listen(port, "127.0.0.1")
    server.logger.info("listening", url=f"ws://127.0.0.1:{port}/ws")
    await stop.wait()
    await server.shutdown()  # tells the clients, and lets running handlers finish
    http.stop()


if __name__ == "__main__":
    asyncio.run(main())
