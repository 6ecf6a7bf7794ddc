# SPDX-License-Identifier: Apache-2.0
"""`await request`: the event loop learns of a completion through a descriptor, without a thread.

Invariant: the request's own descriptor lives until the operation is over (the engine writes to it); the loop only
watches a duplicate, so that several tasks may await one request, and a cancelled one leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from pmrun._native import Request


async def completion(request: Request) -> Any:
    """The request's result, once the operation is over."""
    while not request.test():  # the descriptor of an isendrecv tells of each half
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        descriptor = os.dup(request.fileno())
        loop.add_reader(descriptor, _set, over)
        try:
            await over
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    return request.wait()


def _set(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)
