"""picows, as its documentation shows: a listener, and a bare loop over the transports."""

from __future__ import annotations

from picows import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    ws_create_server,
)

from tests.performance.serving import die_with_parent, orders, published, run, say_ready

MEMBERS: set[WSTransport] = set()


class Echo(WSListener):
    """Answers with what came in, unread."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            transport.send(WSMsgType.TEXT, frame.get_payload_as_memoryview())
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()


class Member(Echo):
    """Everybody is in the one room."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        super().on_ws_connected(transport)
        MEMBERS.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        MEMBERS.discard(transport)


def listener(request: WSUpgradeRequest) -> WSListener:
    return Member() if request.path == b"/room" else Echo()


async def main() -> None:
    server = await ws_create_server(listener, "127.0.0.1", 0, backlog=1024)
    say_ready(server.sockets[0].getsockname()[1])
    async for order in orders():
        for data in order.payloads():
            message = published(data).encode()
            for member in MEMBERS:
                member.send(WSMsgType.TEXT, message)


if __name__ == "__main__":
    die_with_parent()
    run(main)
