"""Waiting for the first of several events, within a bound."""

import asyncio
from collections.abc import Iterable


async def any_set(events: Iterable[asyncio.Event], *, within_s: float | None = None) -> None:
    """Return once one of `events` is set, or after `within_s` seconds; None waits on."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()
