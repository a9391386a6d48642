"""Private messages with acks: the sender learns whether a device has confirmed.

    python examples/private_messages.py
    python -m websockets "ws://localhost:8080/ws?token=ada-1"
    python -m websockets "ws://localhost:8080/ws?token=bob-1"

Ada types the first line. Bob sees a message with an id and "ack": true, and confirms it
with the second line, with that id for ID; until he does, it is sent again, twice. After some
four seconds Ada is told that he has not: that is less than the 5 s that clients wait.

    {"topic": "pm:send", "data": {"to": "bob", "text": "hello"}, "ack": true, "id": "1"}
    {"event": "ack", "ref": "ID"}
"""

import os
from dataclasses import dataclass
from typing import Any

from eyewall import ConnMeta, Context, Envelope, Message, SendOptions, Server, UserId
from eyewall.adapters.auth.static import StaticAuthenticator

ADA, BOB = ConnMeta(user_id=UserId("ada")), ConnMeta(user_id=UserId("bob"))

server = Server(authenticator=StaticAuthenticator({"ada-1": ADA, "bob-1": BOB}))

CONFIRMED = SendOptions(require_ack=True, ack_timeout=1.4, retry_max=2)


@dataclass
class Private:
    to: str
    text: str


@server.on("pm:send")
async def send(ctx: Context, msg: Envelope[Private]) -> dict[str, Any]:
    note = Message("pm:message", data={"from": ctx.user_id, "text": msg.data.text})
    report = await ctx.hub.send_to_user(msg.data.to, note, CONFIRMED)
    error = report.reports[0].error
    if not report.success and error is not None:
        raise error  # UserOffline, AckTimeout, Nacked: the client gets its code
    return {"devices": report.total, "confirmed": report.success}


if __name__ == "__main__":
    server.run(port=int(os.environ.get("PORT", "8080")))
