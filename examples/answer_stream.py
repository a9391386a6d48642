"""An answer that is streamed piece by piece, as a language model writes it.

    python examples/answer_stream.py

Open http://localhost:8080/ in two windows and ask in one: both show the answer as it comes.
Reload in the middle, or open a third window: it gets the answer so far, and the rest without
a gap (`since: "start"`). Any window can stop it. The page's files are in `static`.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated
from uuid import uuid4

from msgspec import Meta, Struct
from tornado.web import StaticFileHandler

from eyewall import BackgroundTask, Context, Envelope, RoomOptions, Server, TokenBucketLimiter
from eyewall.middleware import rate_limit

MOST = 400  # pieces of one answer; the room keeps those of two
PAUSE = float(os.environ.get("PAUSE", "0.06"))  # seconds before each
FILES = {"path": Path(__file__).with_name("static"), "default_filename": "answer_stream.html"}
ANSWER = """You asked: {}\n\nThis comes in pieces, each a message to a room with a history. A \
window that opens late begins at the start, and one that was away goes on where it stood.\n\n\
The task that writes belongs to the server: it ends when a window stops it, or asks anew."""

server = Server(client_commands={"join"})  # a page may ask, but not publish
tasks: list[BackgroundTask] = []  # the answer that is being written: one at a time


class Question(Struct):
    text: Annotated[str, Meta(min_length=1, max_length=300, pattern=r"\S")]


async def model(question: str) -> AsyncIterator[str]:
    """Yield the pieces of an answer as they come; stands for a language model."""
    for word in ANSWER.format(question).split(" ")[:MOST]:
        await asyncio.sleep(PAUSE)
        yield f"{word} "


async def tell(answer: str, event: str, text: str) -> None:
    await server.hub.broadcast_room("answers", "answer", event, {"answer": answer, "text": text})


async def write(question: str) -> None:
    answer, end = uuid4().hex, "stopped"
    try:
        await tell(answer, "question", question)
        async for text in model(question):
            await tell(answer, "piece", text)
        end = "done"
    finally:
        await tell(answer, "end", end)


@server.on("answer:stop")
async def stop(_ctx: Context, _msg: Envelope) -> None:
    while tasks:
        tasks.pop().cancel()


@server.on("answer:ask", rate_limit(TokenBucketLimiter(rate=1, burst=5)))
async def ask(ctx: Context, msg: Envelope[Question]) -> None:
    await stop(ctx, msg)
    tasks.append(server.background(write, msg.data.text))


@server.on_startup
async def begin() -> None:
    await server.hub.create_room("answers", RoomOptions(history_size=2 * MOST + 4))


if __name__ == "__main__":
    pages = [(r"/((?:[a-z_]+\.(?:css|js))?)", StaticFileHandler, FILES)]
    server.run(port=int(os.environ.get("PORT", "8080")), pages=pages)
