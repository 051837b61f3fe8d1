"""ExchangeTurns: how many exchanges there are at once, and whose is next."""

from __future__ import annotations

import asyncio

from callmill.limits.exchange_turns import ExchangeTurns


def test_no_more_exchanges_at_once_than_there_are_turns():
    """Of a hundred exchanges that come together, two are under way at any time, and all are made."""

    async def scene() -> None:
        turns, now, most, made = ExchangeTurns(2), 0, 0, 0

        async def exchange() -> None:
            nonlocal now, most, made
            async with turns.turn("a"):
                now += 1
                most = max(most, now)
                await asyncio.sleep(0)
                now -= 1
                made += 1

        await asyncio.gather(*(exchange() for _ in range(100)))
        assert (most, made) == (2, 100)

    asyncio.run(scene())


def test_a_class_with_one_exchange_waits_for_one_of_another():
    """However many exchanges of another class wait, that of a class that comes is the next or the next but one."""

    async def scene() -> None:
        turns, order = ExchangeTurns(1), []

        async def exchange(traffic: str) -> None:
            async with turns.turn(traffic):
                order.append(traffic)
                await asyncio.sleep(0)

        await asyncio.gather(*(exchange("hostile") for _ in range(50)), exchange("victim"))
        assert order.index("victim") <= 2

    asyncio.run(scene())


def test_an_exchange_that_is_cancelled_takes_no_turn():
    """Whether it waits, or was just told to begin: the others go on."""

    async def scene() -> None:
        turns = ExchangeTurns(1)

        async def exchange() -> None:
            async with turns.turn("a"):
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(exchange()) for _ in range(6)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        await tasks[0]
        tasks[1].cancel()  # it was told to begin, and has not begun
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks, return_exceptions=True)
            async with turns.turn("b"):
                pass

    asyncio.run(scene())
