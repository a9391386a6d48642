"""Clients of Python: each asks for its messages, and reads up to the close."""

from __future__ import annotations

import asyncio

import aiohttp
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.certificate import tls_contexts
from tests.libraries.servers import Found, Way

GO = '{"topic": "go"}'


async def work(way: Way) -> None:
    if way.slow:
        await asyncio.sleep(0.002)


async def by_websockets(way: Way) -> Found:
    texts: list[str] = []
    trusting = tls_contexts()[1] if way.tls else None
    compression = "deflate" if way.deflate else None
    async with connect(way.url, ssl=trusting, compression=compression) as socket:
        await socket.send(GO)
        try:
            while True:
                texts.append(str(await socket.recv()))
                await work(way)
        except ConnectionClosed:
            return Found(texts, socket.close_code, bool(socket.protocol.extensions))


async def by_aiohttp(way: Way) -> Found:
    texts: list[str] = []
    trusting = tls_contexts()[1]
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(way.url, ssl=trusting, compress=15 if way.deflate else 0) as socket,
    ):
        await socket.send_str(GO)
        async for message in socket:
            texts.append(message.data)
            await work(way)
        return Found(texts, socket.close_code, bool(socket.compress))


async def by_tornado(way: Way) -> Found:
    texts: list[str] = []
    request = HTTPRequest(way.url, ssl_options=tls_contexts()[1] if way.tls else None)
    compression = {} if way.deflate else None
    socket = await websocket_connect(request, compression_options=compression)
    await socket.write_message(GO)
    while (text := await socket.read_message()) is not None:
        texts.append(str(text))
        await work(way)
    socket.close()  # it warns otherwise, at its end
    return Found(texts, socket.close_code)
