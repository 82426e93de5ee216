"""The desk between a trial and its workers, without Ray: who is given up, and where workers begin again."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from kdtune.experiment import Experiment
from kdtune.search.desk import LOSSES, Desk, End, Epoch, Failed, Save, Standing, Start
from kdtune.search.worker import _interface_of

NODES = ("here", "there")


async def answered(desk: Desk, order: Any, answer: Any, epochs: int = 0) -> Any:
    """Gives an order, and answers it as rank 0 does."""
    given = asyncio.create_task(desk.give(order))
    await asyncio.sleep(0)
    number, _ = await desk.take(desk.answered)
    await desk.answer(number, answer, epochs)
    return await given


def run(scene: Awaitable[None]) -> None:
    async def all_of_it() -> None:
        await asyncio.wait_for(scene, timeout=10)

    asyncio.run(all_of_it())


def test_workers_begin_where_the_trial_was_told_to_be(experiment: Experiment) -> None:
    async def scene() -> None:
        desk = Desk()
        assert await desk.begin(NODES) == Standing(answered=0, start=None, epochs=0)
        start = Start(experiment, seed=3)
        assert await answered(desk, start, []) == []
        assert await answered(desk, Epoch(), {"epoch": 1}, epochs=1) == {"epoch": 1}
        assert await desk.begin(NODES) == Standing(answered=2, start=start, epochs=1)
        await answered(desk, Save(), b"state", epochs=1)
        await answered(desk, Epoch(), {"epoch": 2}, epochs=2)
        standing = await desk.begin(NODES)
        assert standing.start is not None
        assert (standing.start.state, standing.epochs, standing.answered) == (b"state", 2, 4)
        assert await desk.whereabouts() == (NODES, 2)

    run(scene())


def test_what_fails_twice_without_an_answer_in_between_cannot_go_on(experiment: Experiment) -> None:
    async def scene() -> None:
        desk = Desk()
        await desk.begin(NODES)
        await answered(desk, Start(experiment, seed=0), [])
        order = asyncio.create_task(desk.give(Epoch()))
        await asyncio.sleep(0)
        for said in ("first", "second"):
            await desk.report_error(Failed(said))
            await desk.report_error(Failed("a peer that the first took along"))
            standing = await desk.begin(NODES)
        assert await order == Failed("first")
        assert standing == Standing(answered=2, start=None, epochs=0)

    run(scene())


def test_losses_hours_apart_are_no_reason_to_give_up(experiment: Experiment) -> None:
    async def scene() -> None:
        desk = Desk()
        await desk.begin(NODES)
        await answered(desk, Start(experiment, seed=0), [])
        for epoch in range(1, 2 * LOSSES):
            order = asyncio.create_task(desk.give(Epoch()))
            await asyncio.sleep(0)
            await desk.report_error(Failed("connection closed by peer"))
            standing = await desk.begin(NODES)
            await desk.answer(standing.answered + 1, epoch, epochs=epoch)
            assert await order == epoch

    run(scene())


def test_workers_that_are_lost_again_and_again_without_a_word_may_do_better_elsewhere(experiment: Experiment) -> None:
    async def scene() -> None:
        desk = Desk()
        await desk.begin(NODES)
        order = asyncio.create_task(desk.give(Start(experiment, seed=0)))
        await asyncio.sleep(0)
        for _ in range(LOSSES):
            await desk.begin(NODES)
            assert not order.done()
        await desk.begin(NODES)
        failed = await order
        assert isinstance(failed, Failed)
        assert failed.of_machine

    run(scene())


def test_the_end_is_taken_by_all_and_answered_by_nobody() -> None:
    async def scene() -> None:
        desk = Desk()
        takers = [asyncio.create_task(desk.take(0)) for _ in NODES]
        await desk.give(End())
        assert [await taker for taker in takers] == [(1, End())] * 2

    run(scene())


def test_the_interface_of_an_address_is_found_by_it() -> None:
    assert _interface_of("127.0.0.1") == "lo"
    assert _interface_of("203.0.113.77") is None
