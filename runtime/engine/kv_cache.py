"""Who owns which page of the KV pool. Numbers only: the pages themselves are the runner's.

A page is free, one sequence's own, or in the prefix tree, where sequences share it by reference. Only full pages are shared,
so nothing is ever written to a shared page and no copies are made.
"""

from .prefix_tree import PrefixTree
from .request import Sequence


class KvCache:
    """The pages of one pool and the prefix tree over them."""

    def __init__(self, n_pages: int, page_size: int) -> None:
        self.n_pages, self.page_size = n_pages, page_size
        self.tree = PrefixTree(page_size)
        self._free = list(range(n_pages - 1, -1, -1))  # popped from the end: low numbers first, which keeps pages adjacent

    @property
    def n_free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def n_available(self) -> int:
        """Pages that can be had without taking any from a running sequence."""
        return len(self._free) + self.tree.n_unused

    def begin(self, sequence: Sequence) -> None:
        """Give a sequence that has no pages those of its longest known prefix. Its last token is always computed anew, for
        its logits are needed."""
        known = self.tree.match(sequence.request.cache_salt, sequence.tokens[:-1])
        for node in known:
            self.tree.lock(node)
        sequence.nodes = known
        sequence.pages = [node.page for node in known]
        sequence.computed = len(known) * self.page_size

    def missing_pages(self, sequence: Sequence, n_tokens: int) -> int:
        """Further pages that `n_tokens` more computed tokens need."""
        return max(0, -(-(sequence.computed + n_tokens) // self.page_size) - len(sequence.pages))

    def extend(self, sequence: Sequence, n_tokens: int) -> bool:
        """Give the sequence the pages for `n_tokens` more; False, with nothing changed, if they are not to be had."""
        missing = self.missing_pages(sequence, n_tokens)
        if missing > self.n_available:
            return False
        sequence.pages += [self._take() for _ in range(missing)]
        return True

    def share(self, sequence: Sequence) -> None:
        """Put the sequence's newly full pages into the tree. Where the tree already has such a page, that one is used and
        the sequence's own copy goes: one copy is kept."""
        size = self.page_size
        for i in range(len(sequence.nodes), sequence.computed // size):
            parent = sequence.nodes[-1] if sequence.nodes else None
            block = tuple(sequence.tokens[i * size : (i + 1) * size])
            node = self.tree.insert(sequence.request.cache_salt, parent, block, sequence.pages[i])
            self.tree.lock(node)
            sequence.nodes.append(node)
            if node.page != sequence.pages[i]:
                self._free.append(sequence.pages[i])
                sequence.pages[i] = node.page

    def release(self, sequence: Sequence) -> None:
        """Take all pages back; those in the tree stay there for others until they are evicted."""
        self._free += sequence.pages[len(sequence.nodes) :]
        for node in reversed(sequence.nodes):  # leaves first, so that a prefix outlives what follows it
            self.tree.unlock(node)
        sequence.pages, sequence.nodes, sequence.computed = [], [], 0

    def check_integrity(self, running: list[Sequence]) -> None:
        """Raise AssertionError unless every page has exactly one owner and every reference a reader."""
        nodes = list(self.tree.nodes())
        own = [page for s in running for page in s.pages[len(s.nodes) :]]
        pages = sorted([*self._free, *own, *(node.page for node in nodes)])
        assert pages == list(range(self.n_pages)), "a page was lost or has two owners"
        readers: dict[int, int] = {}
        for sequence in running:
            assert [n.page for n in sequence.nodes] == sequence.pages[: len(sequence.nodes)], "a shared page is another's"
            for node in sequence.nodes:
                readers[id(node)] = readers.get(id(node), 0) + 1
        assert all(node.refs == readers.get(id(node), 0) for node in nodes), "a reference count is wrong"
        assert self.tree.n_pages == len(nodes) and self.tree.n_unused == sum(n.refs == 0 for n in nodes), "a count is wrong"

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        page = self.tree.evict()
        assert page is not None, "n_available promised a page"
        return page
