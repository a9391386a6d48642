"""docs/way-of-a-message.md names the modules that a message passes, in their order."""

import json
import re
import sys
from pathlib import Path

import pytest
import websockets

import eyewall
from eyewall import Server

PAGE = Path(__file__).parents[1] / "docs" / "way-of-a-message.md"
PACKAGE = f"{Path(eyewall.__file__).parent}/"
APART = ("domain/", "adapters/clock/")


def named(heading):
    """The modules in the table below a heading, in the page's order."""
    section = PAGE.read_text().split(f"## {heading}", 1)[1].split("\n## ", 1)[0]
    cells = (line.split("|")[2] for line in section.splitlines() if re.match(r"\| \d", line))
    return [module for cell in cells for module in re.findall(r"`([^`]+)`", cell)]


class Trace:
    """Notes the modules of the package that are called, in the order of their first call."""

    def __init__(self):
        self.modules = []
        self.runs = False

    def __call__(self, frame, event, arg):
        name = frame.f_code.co_filename
        if self.runs and event == "call" and name.startswith(PACKAGE):
            module = name.removeprefix(PACKAGE).removesuffix(".py")
            if not module.startswith(APART) and module not in self.modules:
                self.modules.append(module)

    def take(self):
        found, self.modules = self.modules, []
        return found


async def join(ws):
    await ws.send(
        json.dumps({"id": "j", "topic": "system:join", "data": {"room": "r"}, "ack": True})
    )
    while json.loads(await ws.recv()).get("event") != "ack":
        pass


async def heard(ws, topic):
    while (message := json.loads(await ws.recv())).get("topic") != topic:
        pass
    return message


@pytest.fixture
async def traced():
    """The modules of one message: to its handler, and out to a room's members."""
    server, trace, way = Server(client_commands=True), Trace(), {}

    @server.on("chat:say")
    async def say(ctx, msg):
        way["in"] = trace.take()
        await ctx.hub.broadcast_room("r", "said", data=1)
        return {"ok": True}

    await server.start(port=0)
    before = sys.getprofile()
    try:
        async with (
            websockets.connect(server.url) as ada,
            websockets.connect(server.url) as bob,
        ):
            await join(ada)
            await join(bob)
            request = json.dumps({"id": "1", "topic": "chat:say", "ack": True})
            await ada.send(request)  # what is made once is made
            await heard(ada, "chat:say")
            await heard(bob, "said")
            sys.setprofile(trace)
            trace.runs = True
            await ada.send(request.replace('"1"', '"2"'))
            await heard(bob, "said")
            trace.runs = False
            way["out"] = trace.take()
    finally:
        sys.setprofile(before)
        await server.shutdown(1)
    return way


async def test_the_page_names_the_modules_on_the_way_in(traced):
    assert traced["in"] == named("In: from the socket to the handler")


async def test_the_page_names_the_modules_on_the_way_out(traced):
    assert traced["out"] == named("Out: from the handler to the sockets")
