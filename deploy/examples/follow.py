#!/usr/bin/env python3
"""Follows what happens to the VMs and workers of an Orchard cluster, as JSON, and misses nothing.

    pip install nats-py
    python3 follow.py LAST-NUMBER-FILE

Says each event as a line of JSON on standard output, and keeps the number of the last one in the file. Started again it
goes on behind that; without the file it begins with the oldest event that the controller keeps.

The controller and the network may be away for a while. Where trying again does not help, as the account is let in no more or
may not follow events, it says so and ends with exit code 1: let a supervisor such as systemd start it again.

Environment: ORCHARD_URL, ORCHARD_SERVICE_ACCOUNT_NAME and ORCHARD_SERVICE_ACCOUNT_TOKEN, of an account with the role
compute:read; ORCHARD_CA names the certificate to trust (controller.crt of the controller's data folder) where no public
CA vouches for it.
"""

import asyncio
import json
import os
import pathlib
import re
import ssl
import sys

import nats
import nats.errors

SILENCE = 5  # seconds without an event, after which the controller is asked whether any was missed
PATIENCE = 10  # seconds for an answer
PAUSE = 0.5  # seconds before the controller is asked again, or connected to
MOST_WAITING = 10_000  # events that wait to be handled; those beyond are dropped and asked for again

# What the bus says of an account that is let in no more, or has lost the role: it would be silent from then on.
SHUT_OUT = re.compile("permissions violation|authorization violation|user authentication", re.IGNORECASE)


class Ended(Exception):
    """Why nothing more can be followed."""


def noted(file):
    """The number in `file`; 0 where there is none yet."""
    if not file.exists():
        return 0
    text = file.read_bytes().strip()
    if not re.fullmatch(rb"[0-9]{1,19}", text):
        raise Ended(f"{file} holds no number of an event; remove it to begin with the oldest event that is kept")
    return int(text)


class Follower:
    def __init__(self, client, account, file, last):
        self.client, self.account, self.file, self.last = client, account, file, last
        self.waiting = asyncio.Queue(MOST_WAITING)

    def handle(self, event):
        """What your program does with an event. Should it be killed right here, it gets this event once more."""
        print(json.dumps(event), flush=True)

    def note(self, number):
        """From now on `number` is done. Never half written: the file is replaced once the other is on the disk."""
        new = self.file.with_suffix(".new")
        with new.open("w") as file:
            file.write(f"{number}\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.file)
        self.last = number

    def take(self, event):
        self.handle(event)
        self.note(event["number"])

    async def arrived(self, message):
        if not self.waiting.full():
            self.waiting.put_nowait(json.loads(message.data))

    async def ask(self, verb, request):
        """An answer of the controller, which may be away for a while."""
        while True:
            try:
                subject = f"orchard.v1.api.{self.account}.{verb}"
                reply = await self.client.request(subject, json.dumps(request).encode(), timeout=PATIENCE)
                answer = json.loads(reply.data)
                if "ok" in answer:
                    return answer["ok"]
                if answer["error"]["code"] not in ("unavailable", "timeout"):
                    raise Ended(answer["error"]["message"])
            except (nats.errors.Error, asyncio.TimeoutError) as error:
                print(f"waiting for the controller: {error!r}", file=sys.stderr)
            await asyncio.sleep(PAUSE)

    async def catch_up(self):
        """Asks for what was missed."""
        while True:
            page = await self.ask("event.list", {"after": self.last})
            if page["last"] < self.last:
                raise Ended(f"the newest event is #{page['last']}, and #{self.last} was already seen: other data")
            if page["first_kept"] > self.last + 1 and page["last"] > self.last:
                print(f"events up to #{page['first_kept'] - 1} are no longer kept", file=sys.stderr)
            for event in page["events"]:
                self.take(event)
            if page["next"] > self.last:
                self.note(page["next"])
            if self.last >= page["last"]:
                return

    async def follow(self):
        # Numbers run over events of VMs and workers alike, so whoever wants to know that none is missing takes both.
        for kind in ("vm", "worker"):
            await self.client.subscribe(f"orchard.v1.events-json.{kind}.>", cb=self.arrived)
        # Asked behind the subscriptions on one connection: what is not in the answer arrives.
        await self.catch_up()
        while True:
            try:
                event = await asyncio.wait_for(self.waiting.get(), SILENCE)
            except asyncio.TimeoutError:
                await self.catch_up()
                continue
            if event["number"] == self.last + 1:
                self.take(event)
            elif event["number"] > self.last:
                await self.catch_up()


async def run(file, ended):
    """Follows until it is told why it cannot, by an exception or through `ended`."""
    last = noted(file)
    url, account = os.environ["ORCHARD_URL"], os.environ["ORCHARD_SERVICE_ACCOUNT_NAME"]
    token = account.replace(".", "%2E")  # as a part of a subject

    def end(why):
        if not ended.done():
            ended.set_exception(Ended(why))

    async def told(error):
        print(f"bus: {error!r}", file=sys.stderr)
        if SHUT_OUT.search(str(error)):
            end(f"the account {account} is let in no more, or may not follow events: {error}")

    async def closed():
        end("the connection is closed")

    client = await nats.connect(
        url,
        user=account,
        password=os.environ["ORCHARD_SERVICE_ACCOUNT_TOKEN"],
        inbox_prefix=f"_INBOX.{token}",  # the only one where this account may be answered
        tls=ssl.create_default_context(cafile=os.environ.get("ORCHARD_CA")) if url.startswith("tls://") else None,
        reconnect_time_wait=PAUSE,
        max_reconnect_attempts=-1,
        error_cb=told,
        closed_cb=closed,
    )
    await Follower(client, token, file, last).follow()


async def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    ended = asyncio.get_running_loop().create_future()
    following = asyncio.create_task(run(pathlib.Path(sys.argv[1]), ended))
    try:
        for one in (await asyncio.wait({following, ended}, return_when=asyncio.FIRST_COMPLETED))[0]:
            one.result()
    except Ended as why:
        sys.exit(str(why))


asyncio.run(main())
