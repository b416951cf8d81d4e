"""Broken files: short, altered, foreign, swapped. What comes out of them is right, or does not come."""

import os
import random
from pathlib import Path

import pytest

from baseload.runtime.engine.kv_file import HEADER_BYTES

from .kv_bench import MINE, SLOT, YOURS, file_of, get, keep, new_pool, opened

N_BROKEN = 12


def read_all(root: Path, identity: bytes = MINE) -> tuple[list[bytes | None], int]:
    """What a new store has of the first pages, and how much it found broken."""
    with opened(root, new_pool(9), identity=identity) as store:
        return [get(store, i) for i in range(N_BROKEN)], store.stats().corrupt


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A root with pages of two models."""
    for identity, seed in ((MINE, 0), (YOURS, 1)):
        with opened(tmp_path, new_pool(seed), identity=identity) as store:
            keep(store, *range(N_BROKEN))
    return tmp_path


def sound(seed: int = 0) -> list[bytes]:
    return [page.tobytes() for page in new_pool(seed)[:N_BROKEN]]


def test_one_flipped_byte_costs_its_page_and_is_counted(filled: Path):
    """500 of them, anywhere in the file: all of its header, and every part of its records."""
    path = file_of(filled)
    whole, right, rng = path.read_bytes(), sound(), random.Random(1)
    header = HEADER_BYTES - 4000  # behind that there is only padding
    places = [*rng.sample(range(88), 20), *rng.sample(range(HEADER_BYTES, len(whole)), 480)]
    for at in places:
        broken = bytearray(whole)
        broken[at] ^= rng.randrange(1, 256)
        path.write_bytes(broken)
        found, corrupt = read_all(filled)
        lost = {i for i in range(N_BROKEN) if found[i] != right[i]}
        assert all(found[i] is None for i in lost), at
        assert corrupt == 1 and (len(lost) == 1 if at >= header else len(lost) == N_BROKEN), (at, lost, corrupt)


def test_a_file_cut_anywhere_loses_what_is_behind(filled: Path):
    path = file_of(filled)
    whole, right, rng = path.read_bytes(), sound(), random.Random(2)
    for length in [0, 1, 87, 88, HEADER_BYTES, *(rng.randrange(len(whole)) for _ in range(60))]:
        path.write_bytes(whole[:length])
        found, _ = read_all(filled)
        n = max(0, length - HEADER_BYTES) // SLOT
        assert found == right[:n] + [None] * (N_BROKEN - n), length


def test_another_models_file_is_not_used(filled: Path):
    mine, yours = file_of(filled), file_of(filled, YOURS)
    mine.rename(filled / "x")
    yours.rename(mine)
    (filled / "x").rename(yours)
    for identity in (MINE, YOURS):
        assert read_all(filled, identity) == ([None] * N_BROKEN, 1)


def test_another_models_records_behind_the_right_header_are_not_used(filled: Path):
    mine, yours = file_of(filled), file_of(filled, YOURS)
    mine.write_bytes(mine.read_bytes()[:HEADER_BYTES] + yours.read_bytes()[HEADER_BYTES:])
    assert read_all(filled) == ([None] * N_BROKEN, N_BROKEN)


def test_records_in_each_others_places_are_still_right(filled: Path):
    path, right = file_of(filled), sound()
    whole = path.read_bytes()
    slots = [whole[HEADER_BYTES + i * SLOT :][:SLOT] for i in range(N_BROKEN)]
    path.write_bytes(whole[:HEADER_BYTES] + b"".join(reversed(slots)))
    assert read_all(filled) == (right, 0)


def test_a_page_under_another_pages_header_is_not_used(filled: Path):
    path = file_of(filled)
    whole = bytearray(path.read_bytes())
    first, second = HEADER_BYTES, HEADER_BYTES + SLOT
    whole[first + 88 : first + SLOT] = whole[second + 88 : second + SLOT]
    path.write_bytes(whole)
    found, corrupt = read_all(filled)
    assert found.count(None) == corrupt == 1


def test_what_was_found_broken_is_written_again(filled: Path):
    path, pool = file_of(filled), new_pool()
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + 100)
        file.write(b"garbage")
    with opened(filled, pool) as store:
        assert [get(store, i) for i in range(N_BROKEN)].count(None) == store.stats().corrupt == 1
        keep(store, *range(N_BROKEN))
    assert read_all(filled) == (sound(), 0)


def test_what_was_computed_though_it_was_there_is_written_again(filled: Path):
    """The page before it was broken, so nobody came to read it; it may be broken itself."""
    path = file_of(filled)
    whole = bytearray(path.read_bytes())
    for i in range(N_BROKEN):
        whole[HEADER_BYTES + i * SLOT + 100] ^= 1
    path.write_bytes(whole)
    with opened(filled, new_pool()) as store:
        assert get(store, 0) is None
        keep(store, *range(N_BROKEN))
        assert store.stats().saved == N_BROKEN
        keep(store, *range(N_BROKEN))
        assert store.stats().saved == N_BROKEN, "once"
    assert read_all(filled) == (sound(), 0)


def test_a_file_cut_while_it_is_open_gives_no_wrong_page(filled: Path):
    with opened(filled, new_pool(3)) as store:
        os.truncate(file_of(filled), HEADER_BYTES + SLOT + 50)
        found = [get(store, i) for i in range(N_BROKEN)]
        assert sum(page is not None for page in found) == 1 and store.stats().corrupt == N_BROKEN - 1
