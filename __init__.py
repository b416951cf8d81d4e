"""Baseload: a local-first inference and routing runtime. See ARCHITECTURE.md for the rooms and the way of a request."""

__version__ = "0.1.0"
