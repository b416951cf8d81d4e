"""Who owns which page of the KV pool. Numbers only: the pages themselves are the runner's.

A page is free, one sequence's own, or in the prefix tree, where sequences share it by reference. Only full pages are shared,
so nothing is ever written to a shared page and no copies are made. This is also the one owner of each sequence's count of
computed tokens.
"""

from collections import Counter

from .prefix_tree import PrefixTree
from .request import Sequence


class KvCache:
    """The pages of one pool and the prefix tree over them."""

    def __init__(self, n_pages: int, page_size: int) -> None:
        self.n_pages, self.page_size = n_pages, page_size
        self.tree = PrefixTree()
        self._free = list(range(n_pages - 1, -1, -1))  # popped from the end: low numbers first, which keeps pages adjacent

    @property
    def n_free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def n_available(self) -> int:
        """Pages that can be had without taking any from a running sequence."""
        return len(self._free) + self.tree.n_unused

    def catch_up(self, sequence: Sequence) -> None:
        """Take what the tree knows of the sequence's next pages instead of computing them: its prompt's known beginning, and
        later what others with the same prompt have computed meanwhile. The last token is always computed, for its logits."""
        size, tokens, salt = self.page_size, sequence.tokens, sequence.request.cache_salt
        nodes, pages = sequence.nodes, sequence.pages
        while (end := (len(nodes) + 1) * size) < len(tokens):
            node = self.tree.find(salt, nodes[-1] if nodes else None, tuple(tokens[end - size : end]))
            if node is None:
                break
            self.tree.lock(node)
            if len(nodes) < len(pages):
                self._free.append(pages[len(nodes)])
                pages[len(nodes)] = node.page
            else:
                pages.append(node.page)
            nodes.append(node)
            if not sequence.preempted:
                sequence.cached_tokens += end - sequence.computed
            sequence.computed = end

    def missing_pages(self, sequence: Sequence, n_tokens: int) -> int:
        """Further pages that `n_tokens` more computed tokens need."""
        return max(0, -(-(sequence.computed + n_tokens) // self.page_size) - len(sequence.pages))

    def extend(self, sequence: Sequence, n_tokens: int) -> bool:
        """Give the sequence the pages for `n_tokens` more; False, with nothing changed, if they are not to be had."""
        missing = self.missing_pages(sequence, n_tokens)
        if missing > self.n_available:
            return False
        for _ in range(missing):
            sequence.pages.append(self._take())
        return True

    def advance(self, sequence: Sequence, n_tokens: int) -> None:
        """`n_tokens` more have been computed: count them, and put the pages that are now full into the tree. Where the tree
        already has such a page, that one is used and the sequence's own copy goes: one copy is kept."""
        size, nodes, pages = self.page_size, sequence.nodes, sequence.pages
        sequence.computed += n_tokens
        for i in range(len(nodes), sequence.computed // size):
            block = tuple(sequence.tokens[i * size : (i + 1) * size])
            node = self.tree.insert(sequence.request.cache_salt, nodes[-1] if nodes else None, block, pages[i])
            self.tree.lock(node)
            nodes.append(node)
            if node.page != pages[i]:
                self._free.append(pages[i])
                pages[i] = node.page

    def release(self, sequence: Sequence, *, trusted: bool = True) -> None:
        """Take all pages back. Those in the tree stay there for others until they are evicted; not so if the sequence is not
        `trusted`, for what broke it may lie in its pages, and would break all that share them."""
        self._free.extend(sequence.pages[len(sequence.nodes) :])
        for node in reversed(sequence.nodes):  # leaves first, so that a prefix outlives what follows it
            self.tree.unlock(node)
            if not trusted and not node.refs and not node.children:
                self._free.append(self.tree.remove(node))
        del sequence.pages[:], sequence.nodes[:]
        sequence.computed = 0

    def check_integrity(self, running: list[Sequence]) -> None:
        """Raise AssertionError unless every page has exactly one owner and every reference a reader."""
        nodes = list(self.tree.nodes())
        own = [page for s in running for page in s.pages[len(s.nodes) :]]
        pages = sorted([*self._free, *own, *(node.page for node in nodes)])
        assert pages == list(range(self.n_pages)), "a page was lost or has two owners"
        for s in running:
            assert [node.page for node in s.nodes] == list(s.pages[: len(s.nodes)]), "a shared page is another's"
            assert len(s.nodes) == s.computed // self.page_size and s.computed < len(s.tokens), "a count is wrong"
        readers = Counter(id(node) for s in running for node in s.nodes)
        assert all(node.refs == readers[id(node)] for node in nodes), "a reference count is wrong"
        assert self.tree.n_pages == len(nodes) and self.tree.n_unused == sum(n.refs == 0 for n in nodes), "a count is wrong"

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        page = self.tree.evict()
        assert page is not None, "n_available promised a page"
        return page
