"""The way out for commands: what the user's own command needs to dial is allowed, written down first, or closed by an air gap."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
