"""A stock NATS client at a server: hello.py URL [USER PASSWORD]. Says something and hears it; fails if it is not let in."""

import asyncio
import sys

import nats


async def main(url, *account):
    async def told(error):
        print(f"told: {error!r}", file=sys.stderr)

    known = dict(zip(("user", "password"), account))
    client = await nats.connect(url, allow_reconnect=False, max_reconnect_attempts=0, error_cb=told, **known)
    heard = await client.subscribe("hello")
    await client.publish("hello", b"x")
    assert (await heard.next_msg(timeout=5)).data == b"x"
    await client.close()


asyncio.run(main(*sys.argv[1:]))
