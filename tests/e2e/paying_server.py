"""The server without a local model: its routes, router, supplier calls, keys and books are the real ones.

`python paying_server.py LEDGER_URL SUPPLIER_URL` prints the port that it listens on when it is ready.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator

import uvloop

from baseload.ledger import Ledger
from baseload.ledger.purse import Purse
from baseload.router import Policy, Router
from baseload.router.suppliers.profile import SupplierProfile, parse_profile
from baseload.server.app import create_app
from baseload.server.build import door
from baseload.server.keyring import Keyring
from baseload.server.run import Server, bind, uvicorn_config
from baseload.server.services import Services
from baseload.server.settings import ServerSettings, Settings
from baseload.wire.backend import Backend, ModelInfo
from baseload.wire.chat import ChatRequest, Event, Finish, TextDelta, Usage
from baseload.wire.client import HttpBackend


class Echo:
    """Stands where the local model would."""

    models = (ModelInfo("echo", 4096),)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        yield TextDelta("echo", tokens=1)
        yield Usage(4, 1)
        yield Finish("stop")

    def count_tokens(self, request: ChatRequest) -> int | None:
        return 4


def services(url: str, supplier: str, settings: Settings) -> Services:
    """The rooms below."""
    ledger = Ledger.open(url)
    ledger.reconcile()
    egress, suppliers = door(settings, ledger, []), dict[str, tuple[SupplierProfile, Backend]]()
    for name, kind, base in (("acme", "openai_chat", f"{supplier}/v1"), ("claude", "anthropic_messages", supplier)):
        models = [{"id": "gpt-4o-mini", "context_length": 200_000}]
        profile = parse_profile(name, {"base_url": base, "kind": kind, "price_provider": "openai", "models": models})
        suppliers[name] = (profile, profile.guarded(HttpBackend(profile.connection(), profile.models, egress)))
    policy = Policy(allowed_suppliers=frozenset(suppliers))
    purse = Purse(ledger.engine)
    return Services(Router([Echo()], suppliers, policy, ledger, purse=purse), ledger, keyring=Keyring(ledger.engine))


async def main(url: str, supplier: str) -> None:
    """Serve until killed."""
    settings = Settings(server=ServerSettings(port=0))
    app = create_app(services(url, supplier, settings), settings)
    listener = bind(settings.server)
    print(listener.getsockname()[1], flush=True)
    await Server(uvicorn_config(app, settings.server), app.state.life, 5.0).serve(sockets=[listener])


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
