"""Every path keeps to its own description: bodies made from it, right and wrong, never meet a fault of ours."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from baseload.ledger.ledger import Ledger
from baseload.router.policy import Policy
from baseload.router.router import Router
from baseload.server import openapi
from baseload.server.app import create_app
from baseload.server.services import Services
from baseload.server.settings import Settings

from .conftest import Echo, Letters

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    negative_data_rejection,
]  # fmt: skip


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home: Path = tmp_path_factory.mktemp("ledger")
    ledger = Ledger.open(f"sqlite:///{home}/ledger.db")
    services = Services(Router([Echo()], {}, Policy(), ledger), ledger, embedders={"letters": Letters()})
    app = create_app(services, Settings(), env={})
    # Names made up at random would all be unknown, and nothing behind them tried.
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setitem(openapi.MODEL, "enum", ["tiny", "local", "auto", "letters"])
    yield schemathesis.openapi.from_asgi("/openapi.json", app)
    monkeypatch.undo()
    ledger.close()


PATHS = sorted(
    (m, p) for p, methods in openapi.document(create_app(None, Settings(), env={}).routes)["paths"].items() for m in methods
)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), PATHS)
def test_a_path_keeps_to_its_description(described: Any, method: str, path: str, mode: GenerationMode):
    operation = described[path][method.upper()]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=20,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        database=None,
    )
    def keeps(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    with contextlib.suppress(Unsatisfiable):  # nothing is wrong with a path that takes nothing
        keeps()
