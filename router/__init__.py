"""Where each request runs, and why: gates, checks, cascade."""

from .policy import Policy
from .router import Handling, RequestContext, Router

__all__ = ["Handling", "Policy", "RequestContext", "Router"]
