"""Sends a few canonical flows to the topic `flows`, as a producer of yours would.

Use: python send_flows.py BOOTSTRAP [TENANT]
"""

import asyncio
import json
import sys
import time

from aiokafka import AIOKafkaProducer


async def main(bootstrap: str, tenant: str) -> None:
    """Send one call a service pair, dated now."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        for src, dst, port in (("shop/web", "shop/cart", 8080), ("shop/cart", "shop/db", 5432)):
            flow = {
                "time_ms": int(time.time() * 1000),
                "tenant": tenant,
                "src": src,
                "dst": dst,
                "port": port,
                "protocol": "tcp",
                "bytes_out": 512,
                "bytes_in": 20_480,
                "latency_us": 3_100,
                "errors": 0,
                "reporter": "client",
            }
            await producer.send_and_wait("flows", json.dumps(flow).encode())
            print("sent", json.dumps(flow))
    finally:
        await producer.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "acme"))
