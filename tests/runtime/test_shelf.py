"""Which models are in memory: the budget holds, nobody is put away while in use, nobody waits for ever, nothing thrashes."""

import asyncio
import random
import threading
import time
from collections.abc import Callable

import pytest

from baseload.runtime.shelf import Shelf


class Item:
    def __init__(self, name: str, alive: set[str]) -> None:
        self.name, self.users, self._alive = name, 0, alive
        alive.add(name)

    async def drain(self, timeout_s: float) -> None:
        assert not self.users, f"{self.name} is put away while it is used"

    def close(self) -> None:
        self._alive.discard(self.name)


class House:
    """A shelf of items of given sizes; `most` is the largest number of bytes that were loaded at once."""

    def __init__(self, budget: int, stay_s: float = 0.0, load_s: float = 0.0, **sizes: int) -> None:
        self.shelf: Shelf[Item] = Shelf(budget, stay_s)
        self.sizes, self.alive, self.most, self.order = sizes, set[str](), 0, list[str]()
        self.broken: set[str] = set()
        for name, size in sizes.items():
            self.shelf.add(name, self._loader(name, load_s), size)

    def _loader(self, name: str, load_s: float) -> Callable[[], Item]:
        def load() -> Item:
            assert threading.current_thread() is not threading.main_thread(), "loading blocks"
            time.sleep(load_s)
            if name in self.broken:
                raise ValueError(f"{name} is broken")
            item = Item(name, self.alive)
            self.order.append(name)
            self.most = max(self.most, sum(self.sizes[n] for n in self.alive))
            return item

        return load

    async def use(self, name: str, seconds: float = 0.0) -> None:
        async with self.shelf.lend(name) as item:
            assert item.name == name and name in self.alive
            item.users += 1
            try:
                await asyncio.sleep(seconds)
                assert name in self.alive
            finally:
                item.users -= 1


async def test_a_model_is_loaded_when_asked_for_and_stays():
    house = House(0, a=1, b=1)
    assert not house.alive
    await asyncio.gather(*(house.use("a") for _ in range(5)))
    await house.use("b")
    await house.use("a")
    assert house.order == ["a", "b"] and set(house.shelf.loaded) == {"a", "b"}
    await house.shelf.close()
    assert not house.alive and not house.shelf.loaded


async def test_the_least_lately_asked_for_makes_room():
    house = House(20, a=10, b=10, c=10)
    for name in "abac":
        await house.use(name)
    assert house.alive == {"a", "c"} and house.most == 20


async def test_one_model_may_be_larger_than_the_budget():
    house = House(5, a=10, b=3)
    await house.use("a")
    await house.use("b")
    assert house.alive == {"b"}


async def test_a_busy_model_is_waited_for_and_takes_no_more_requests():
    house = House(10, a=10, b=10)
    first = asyncio.create_task(house.use("a", 0.05))
    await asyncio.sleep(0.02)
    other = asyncio.create_task(house.use("b"))
    await asyncio.sleep(0)
    later = [asyncio.create_task(house.use("a")) for _ in range(3)]
    await asyncio.gather(first, other, *later)
    assert house.order == ["a", "b", "a"], "those who came after b wait for it, and then come in together"


async def test_two_wanted_models_take_turns_by_groups():
    house = House(10, stay_s=0.05, load_s=0.01, a=10, b=10)
    await asyncio.gather(*(house.use("ab"[i % 2], 0.001) for i in range(100)))
    assert len(house.order) <= 4


async def test_a_busy_model_that_was_just_loaded_stays_a_while():
    house = House(10, stay_s=0.2, a=10, b=10)

    async def ask(name: str) -> None:
        for _ in range(100):
            await house.use(name, 0.002)

    others = [asyncio.create_task(ask("a")) for _ in range(3)]
    await asyncio.sleep(0.05)
    await house.use("b")
    assert house.order == ["a", "b"]
    await asyncio.gather(*others)
    assert house.order == ["a", "b", "a"]


@pytest.mark.parametrize("when", ["queued", "loading"])
async def test_whoever_stops_waiting_leaves_no_trace(when: str):
    house = House(10, load_s=0.03, a=10, b=10)
    hold = asyncio.create_task(house.use("a", 0.05 if when == "queued" else 0.0))
    await asyncio.sleep(0.04 if when == "queued" else 0.1)
    waiting = asyncio.create_task(house.use("b"))
    await asyncio.sleep(0.005)
    waiting.cancel()
    await asyncio.gather(hold, waiting, return_exceptions=True)
    await asyncio.wait_for(house.use("a"), 2)
    await asyncio.wait_for(house.use("b"), 2)
    await house.shelf.close()


async def test_a_model_that_cannot_be_loaded_fails_those_who_wait_and_nobody_else():
    house = House(10, a=10, b=10)
    house.broken.add("a")
    results = await asyncio.gather(house.use("a"), house.use("a"), house.use("b"), return_exceptions=True)
    assert [type(r) for r in results] == [ValueError, ValueError, type(None)]
    house.broken.clear()
    await house.use("a")


@pytest.mark.parametrize("seed", range(20))
async def test_any_order_of_requests(seed: int):
    rng = random.Random(seed)
    sizes = {name: rng.randint(1, 6) for name in "abcde"}
    house = House(rng.randint(6, 14), rng.choice((0.0, 0.002)), **sizes)

    async def client() -> None:
        for _ in range(rng.randint(1, 8)):
            task = asyncio.create_task(house.use(rng.choice("abcde"), rng.choice((0.0, 0.001))))
            if rng.random() < 0.2:
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async with asyncio.timeout(20):
        await asyncio.gather(*(client() for _ in range(12)))
        await house.shelf.close()
    assert not house.alive and house.most <= max(house.shelf._budget, max(sizes.values()))
