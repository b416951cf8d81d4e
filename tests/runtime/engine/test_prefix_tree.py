"""The tree beside a plain dictionary of prefixes, and the order in which it lets pages go."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from baseload.runtime.engine.prefix_tree import Node, PrefixTree

Path = tuple[tuple[int, ...], ...]


def grow(tree: PrefixTree, *blocks: int, first_page: int = 0, salt: str = "") -> list[Node]:
    """A locked path of one-token blocks."""
    path: list[Node] = []
    for i, block in enumerate(blocks):
        path.append(tree.insert(salt, path[-1] if path else None, (block,), first_page + i))
        tree.lock(path[-1])
    return path


def let_go(tree: PrefixTree, path: list[Node]) -> None:
    for node in reversed(path):
        tree.unlock(node)


def known(tree: PrefixTree, *blocks: int, salt: str = "") -> list[int]:
    """The pages of the longest known beginning of a path."""
    pages: list[int] = []
    node = None
    for block in blocks:
        node = tree.find(salt, node, (block,))
        if node is None:
            break
        pages.append(node.page)
    return pages


def test_a_path_is_found_as_far_as_it_is_known():
    tree = PrefixTree()
    grow(tree, 1, 2, 3)
    assert known(tree, 1, 2, 9) == [0, 1] and known(tree, 2) == []


def test_owners_with_different_salts_never_meet():
    tree = PrefixTree()
    grow(tree, 1, 2, salt="a")
    assert known(tree, 1, 2, salt="b") == [] and known(tree, 1, 2) == []
    grow(tree, 1, first_page=7, salt="b")
    assert known(tree, 1, 2, salt="a") == [0, 1] and known(tree, 1, 2, salt="b") == [7]


def test_the_least_recently_used_leaf_goes_first_and_a_prefix_after_what_follows_it():
    tree = PrefixTree()
    old, new = grow(tree, 1, 2), grow(tree, 5, 6, first_page=10)
    let_go(tree, old)
    let_go(tree, new)
    again = grow(tree, 1, 2)  # used again: now the other one is older
    let_go(tree, again)
    assert [tree.evict() for _ in range(5)] == [11, 10, 1, 0, None]
    assert tree.n_pages == tree.n_unused == 0


def test_what_is_read_stays():
    tree = PrefixTree()
    path = grow(tree, 1, 2)
    tree.unlock(path[1])
    assert [tree.evict(), tree.evict()] == [1, None] and known(tree, 1, 2) == [0]


def test_many_comings_and_goings_leave_nothing_behind():
    """Stale entries of the eviction order are thrown away, however often one page is used."""
    tree = PrefixTree()
    for _ in range(5000):
        let_go(tree, grow(tree, 1, 2, 3))
    assert len(tree._heap) <= 64 + 4 * 3 + 1
    assert [tree.evict() for _ in range(4)] == [2, 1, 0, None] and not tree._roots.children


class Machine(RuleBasedStateMachine):
    """Random paths by two owners; readers come and go; pages are evicted."""

    readers = Bundle("readers")

    def __init__(self) -> None:
        super().__init__()
        self.tree, self.pages, self.next_page = PrefixTree(), {}, 0
        self.reading: list[list[Node]] = []

    @rule(target=readers, salt=st.sampled_from("ab"), blocks=st.lists(st.integers(0, 2), min_size=1, max_size=5))
    def read(self, salt: str, blocks: list[int]) -> tuple[str, tuple[int, ...], list[Node]]:
        path: list[Node] = []
        for i, block in enumerate(blocks):
            node = self.tree.insert(salt, path[-1] if path else None, (block,), self.next_page)
            self.tree.lock(node)
            key = (salt, *blocks[: i + 1])
            assert node.page == self.pages.setdefault(key, self.next_page)
            self.next_page += 1
            path.append(node)
        self.reading.append(path)
        return salt, tuple(blocks), path

    @rule(reader=consumes(readers))
    def leave(self, reader: tuple[str, tuple[int, ...], list[Node]]) -> None:
        let_go(self.tree, reader[2])
        self.reading = [path for path in self.reading if path is not reader[2]]

    @rule()
    def evict(self) -> None:
        page, unused = self.tree.evict(), self.unused()
        assert (page is None) == (not unused)
        if page is not None:
            key = next(key for key, value in self.pages.items() if value == page)
            assert key in unused and not any(other[: len(key)] == key and other != key for other in self.pages)
            del self.pages[key]

    @invariant()
    def all_pages_are_found_and_counted(self) -> None:
        assert sorted(node.page for node in self.tree.nodes()) == sorted(self.pages.values())
        assert (self.tree.n_pages, self.tree.n_unused) == (len(self.pages), len(self.unused()))
        for salt, *blocks in self.pages:
            assert known(self.tree, *blocks, salt=salt)[-1:] == [self.pages[(salt, *blocks)]]

    def unused(self) -> set[tuple[str | int, ...]]:
        read = {node.page for path in self.reading for node in path}
        return {key for key, page in self.pages.items() if page not in read}


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestMachine = Machine.TestCase
