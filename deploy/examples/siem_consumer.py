"""Reads `drift-events`, drops repeats, prints a line an event: python siem_consumer.py 127.0.0.1:9092 drift-events."""

import argparse
import asyncio
import json
import time
from collections import OrderedDict

from aiokafka import AIOKafkaConsumer

REMEMBERED = 100_000
"""Ids kept in memory (about 17 MB). Repeats come close together: after a restart or a rebalance."""


async def consume(bootstrap: str, topic: str, group: str, stop_after: int, timeout_s: float) -> int:
    """Print events until ``stop_after`` (0: never) or for ``timeout_s`` (0: for ever); return how many there were."""
    seen: OrderedDict[str, None] = OrderedDict()
    printed, deadline = 0, time.monotonic() + timeout_s
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False
    ) as consumer:
        while not (timeout_s and time.monotonic() >= deadline):
            batches = await consumer.getmany(timeout_ms=500)
            for records in batches.values():
                for record in records:
                    event_id = dict(record.headers)["ce_id"].decode()
                    if event_id in seen:
                        continue
                    seen[event_id] = None
                    if len(seen) > REMEMBERED:
                        seen.popitem(last=False)
                    event = json.loads(record.value)  # here: hand the event on, and return only when it is safe
                    info = event["finding_info"]
                    print(event["severity"], event["activity_name"], info["title"], f"[{info['uid']}]", flush=True)
                    printed += 1
                    if printed == stop_after:
                        return printed
            if batches:
                await consumer.commit()  # after the events are safe: a crash repeats them, and loses none
    return printed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bootstrap")
    parser.add_argument("topic")
    parser.add_argument("--group", default="siem-example", help="consumer group (default: %(default)s)")
    parser.add_argument("--stop-after", type=int, default=0, metavar="N", help="end after N events")
    parser.add_argument("--timeout", type=float, default=0, metavar="S", help="end after S seconds")
    options = parser.parse_args()
    coroutine = consume(options.bootstrap, options.topic, options.group, options.stop_after, options.timeout)
    count = asyncio.run(coroutine)
    if options.stop_after and count < options.stop_after:
        raise SystemExit(f"only {count} of {options.stop_after} events came within {options.timeout:g} s")
