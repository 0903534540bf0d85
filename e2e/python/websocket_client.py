"""The Python package websockets as a client, by its own defaults: it offers compression, and answers pings by itself.

Arguments: the API's address, a user's token, and a friend's. Prints what it has seen, as JSON.
"""

import asyncio
import json
import sys
import urllib.request

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus


def call(url, token=None, body=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers, data=body and json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


async def main(base, token, friend_token):
    seen = {}
    url = (await asyncio.to_thread(call, f"{base}/v1/gateway"))["url"]
    offers = {"subprotocols": ["nearby.v1", f"bearer.{token}"], "compression": "deflate"}

    async def until(socket, kind):
        while True:
            frame = json.loads(await asyncio.wait_for(socket.recv(), 10))
            if frame["type"] == kind:
                return frame

    async with connect(url, **offers) as socket:
        seen["offered"] = "permessage-deflate" in socket.request.headers["Sec-WebSocket-Extensions"]
        seen["extensions"] = socket.response.headers.get("Sec-WebSocket-Extensions", "")
        seen["subprotocol"] = socket.subprotocol
        seen["first"] = [json.loads(await socket.recv())["type"] for _ in range(2)]
        await asyncio.wait_for(await socket.ping(b"are you there?"), 10)
        seen["pong"] = True
        await socket.send(json.dumps({"type": "location", "lat": 50, "lon": 8, "ref": "whole"}))
        seen["whole"] = (await until(socket, "accepted"))["ref"]
        # A ping may come between the fragments of a message.
        text = json.dumps({"type": "location", "lat": 50, "lon": 8.001, "ref": "in three"})

        async def parts():
            yield text[:7]
            await socket.ping()
            yield text[7:20]
            yield text[20:]

        await socket.send(parts())
        seen["fragmented"] = (await until(socket, "accepted"))["ref"]
        await asyncio.to_thread(call, f"{base}/v1/locations", friend_token, {"lat": 50.01, "lon": 8.001})
        moved = (await until(socket, "update"))["moved"][0]
        seen["moved"] = [moved["lat"], round(moved["distance_m"])]
        await socket.close(1000, "enough")
        seen["closed"] = [socket.close_code, socket.close_reason]

    async with connect(url, **offers) as socket:
        await until(socket, "snapshot")
        try:
            await socket.send(" " * (64 * 1024 + 1))
            await until(socket, "never")
        except ConnectionClosed as closed:
            seen["too big"] = [closed.rcvd and closed.rcvd.code, closed.rcvd and closed.rcvd.reason]
    try:
        async with connect(url, subprotocols=["nearby.v1", "bearer.nonsense"]):
            pass
    except InvalidStatus as refused:
        seen["bad token"] = refused.response.status_code
    print(json.dumps(seen))


asyncio.run(main(*sys.argv[1:]))
