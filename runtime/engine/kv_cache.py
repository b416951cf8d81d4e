"""Who owns which page of the KV pool. Numbers only: the pages themselves are the runner's.

A page is free, one sequence's own, or in the prefix tree, where sequences share it by reference. Only full pages are shared,
so nothing is ever written to a shared page and no copies are made. What the tree has lost, a store may still have. This is
also the one owner of each sequence's count of computed tokens.
"""

import hashlib
from array import array
from collections import Counter

from .kv_store import PageStore
from .prefix_tree import Block, Node, PrefixTree
from .request import Sequence


def page_key(before: bytes, block: Block) -> bytes:
    """The name (32 bytes) of the page that holds `block` after the page named `before`; the first one's comes after its
    salt's."""
    return hashlib.blake2b(array("q", block).tobytes(), digest_size=32, key=before).digest()


def salt_key(salt: str) -> bytes:
    """What the names of one owner's pages begin with."""
    return hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=32, person=b"baseload salt").digest()


class KvCache:
    """The pages of one pool and the prefix tree over them."""

    def __init__(self, n_pages: int, page_size: int, store: PageStore | None = None) -> None:
        self.n_pages, self.page_size, self._store = n_pages, page_size, store
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

    def restore(self, sequence: Sequence, at_most: int) -> int:
        """Read up to `at_most` of the sequence's next pages back from the store, after `catch_up`; how many there were. It is
        `restoring` until there are no more."""
        n = 0
        while sequence.restoring and n < at_most:
            was_there = self._restore_page(sequence)
            sequence.restoring = was_there and (len(sequence.nodes) + 1) * self.page_size < len(sequence.tokens)
            n += was_there
        return n

    def save(self, sequence: Sequence) -> None:
        """Let the store keep the sequence's full pages. To be called when it has got sound logits, and no sooner: they are
        computed from every page before them, so a broken number in one of those would have shown."""
        if self._store is not None:
            for depth in range(sequence.saved, len(sequence.nodes)):
                node = sequence.nodes[depth]
                self._store.keep(node.key, node.page, depth, lambda node=node: node.is_in_tree)
            sequence.saved = len(sequence.nodes)

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
            node = self._insert(sequence, block, self._key(sequence, block), pages[i])
            if node.page != pages[i]:
                self._free.append(pages[i])
                pages[i] = node.page

    def release(self, sequence: Sequence, *, trusted: bool = True) -> None:
        """Take all pages back. Those in the tree stay there for others until they are evicted; not so if the sequence is not
        `trusted`, for what broke it may lie in its pages, and would break all that share them; the store forgets them too."""
        self._free.extend(sequence.pages[len(sequence.nodes) :])
        for node in reversed(sequence.nodes):  # leaves first, so that a prefix outlives what follows it
            self.tree.unlock(node)
            if not trusted and not node.refs and not node.children:
                self._free.append(self.tree.remove(node))
                if self._store is not None:
                    self._store.discard(node.key)
        del sequence.pages[:], sequence.nodes[:]
        sequence.computed = sequence.saved = 0

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

    def _restore_page(self, sequence: Sequence) -> bool:
        size, i = self.page_size, len(sequence.nodes)
        block = tuple(sequence.tokens[i * size : (i + 1) * size])
        if self._store is None or (i + 1) * size >= len(sequence.tokens) or not self.n_available:
            return False
        if len(sequence.pages) > i:  # it has begun to compute the next one itself
            return False
        key = self._key(sequence, block)
        if not self._store.has(key):
            return False
        page = self._take()
        if not self._store.load(key, page):
            self._free.append(page)
            return False
        self._insert(sequence, block, key, page)
        sequence.pages.append(page)
        if not sequence.preempted:
            sequence.cached_tokens += size
        sequence.computed += size
        return True

    def _key(self, sequence: Sequence, block: Block) -> bytes:
        if self._store is None:
            return b""
        return page_key(sequence.nodes[-1].key if sequence.nodes else salt_key(sequence.request.cache_salt), block)

    def _insert(self, sequence: Sequence, block: Block, key: bytes, page: int) -> Node:
        node = self.tree.insert(sequence.request.cache_salt, sequence.nodes[-1] if sequence.nodes else None, block, page)
        node.key = key
        self.tree.lock(node)
        sequence.nodes.append(node)
        return node

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        page = self.tree.evict()
        assert page is not None, "n_available promised a page"
        return page
