"""The page itself: files of the package, known by name, under a policy that lets nothing else run."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

from ...wire.errors import NotFound

_FOLDER = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# No inline script or style, no other origin, no frame around it, and no string that becomes markup (trusted types).
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def _read() -> dict[str, tuple[bytes, str]]:
    return {path.name: (path.read_bytes(), _TYPES[path.suffix]) for path in _FOLDER.iterdir() if path.suffix in _TYPES}


_FILES = _read()  # a name is looked up here and never joined to a path
PATHS = frozenset({"/console", *(f"/console/page/{name}" for name in _FILES)})


def page_file(name: str) -> Response:
    """One of the page's files. Raises NotFound."""
    if name not in _FILES:
        raise NotFound("The console has no such file.")
    content, kind = _FILES[name]
    return Response(content, headers=HEADERS, media_type=f"{kind}; charset=utf-8")
