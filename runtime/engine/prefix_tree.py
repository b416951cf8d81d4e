"""The prefix tree: which full pages hold which tokens, so that a prompt's known beginning is not computed again.

A node is one page of tokens under the pages before it; a path from the root is a prefix. A node in use has references; one
that nobody uses stays until its page is wanted, least recently used leaves first. Each salt has a root of its own: owners
never meet.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

Block = tuple[int, ...]  # one page's tokens


@dataclass(slots=True, eq=False)
class Node:
    """One page in the tree. `refs`: sequences that read it now; `used`: the tree's clock when last released."""

    page: int  # -1: a root, which has none
    block: Block | str  # its key among the parent's children; a root's is its salt
    parent: "Node | None"  # None: no longer in the tree
    children: dict[Block | str, "Node"] = field(default_factory=dict)
    refs: int = 0
    used: int = 0
    key: bytes = b""  # its page's in the store, if there is one

    @property
    def is_in_tree(self) -> bool:
        """Whether its page is still its own."""
        return self.parent is not None


class PrefixTree:
    """Pages by the tokens that they and all before them hold."""

    def __init__(self) -> None:
        self._roots = Node(-1, "", None)
        self._clock = 0
        # Leaves that may be evicted, (used, number, node). An entry is stale if its node was used, grew or went since:
        # that is found when it is popped, which is cheaper than keeping the heap exact.
        self._heap: list[tuple[int, int, Node]] = []
        self._pushed = 0
        self.n_pages = 0  # in the tree
        self.n_unused = 0  # of them without references

    def find(self, salt: str, parent: Node | None, block: Block) -> Node | None:
        """The node of `block` after `parent` (None: at the beginning), if there is one."""
        above = parent or self._roots.children.get(salt)
        return above and above.children.get(block)

    def insert(self, salt: str, parent: Node | None, block: Block, page: int) -> Node:
        """The node of `block` after `parent`. Takes `page` only if that node was not there yet."""
        above = parent or self._roots.children.setdefault(salt, Node(-1, salt, self._roots))
        node = above.children.get(block)
        if node is None:
            node = above.children[block] = Node(page, block, above)
            self.n_pages += 1
            self.n_unused += 1
        return node

    def lock(self, node: Node) -> None:
        """One more reader."""
        self.n_unused -= node.refs == 0
        node.refs += 1

    def unlock(self, node: Node) -> None:
        """One reader less; the last one's leaving makes it a candidate for eviction."""
        node.refs -= 1
        if node.refs == 0:
            self._clock += 1
            node.used = self._clock
            self.n_unused += 1
            self._offer(node)

    def evict(self) -> int | None:
        """Take the least recently used page that nobody reads out of the tree; None if there is none."""
        while self._heap:
            entry = heapq.heappop(self._heap)
            if _is_current(entry):
                return self.remove(entry[2])
        return None

    def remove(self, node: Node) -> int:
        """Take out a leaf that nobody reads; returns its page."""
        parent = node.parent
        assert parent is not None and not node.refs and not node.children, "only an unused leaf may go"
        node.parent = None
        del parent.children[node.block]
        self.n_pages -= 1
        self.n_unused -= 1
        if parent.page >= 0:
            self._offer(parent)
        elif not parent.children:
            del self._roots.children[parent.block]
        return node.page

    def nodes(self) -> Iterator[Node]:
        """All nodes with pages."""
        todo = [child for root in self._roots.children.values() for child in root.children.values()]
        while todo:
            node = todo.pop()
            yield node
            todo.extend(node.children.values())

    def _offer(self, node: Node) -> None:
        """Put `node` up for eviction if it is a leaf that nobody reads."""
        if node.refs or node.children:
            return
        self._pushed += 1
        heapq.heappush(self._heap, (node.used, self._pushed, node))
        if len(self._heap) > 64 + 4 * self.n_pages:  # mostly stale
            self._heap = [entry for entry in self._heap if _is_current(entry)]
            heapq.heapify(self._heap)


def _is_current(entry: tuple[int, int, Node]) -> bool:
    used, _, node = entry
    return not node.refs and not node.children and node.used == used and node.parent is not None
