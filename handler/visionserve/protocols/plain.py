"""This service's own form: `{"data": ..., "top_k": ...}` in, an object or a list out."""

from collections.abc import Mapping, Sequence
from typing import Any

from visionserve.answer import Outcome
from visionserve.protocols.reply import Reply, body_of, status_of


class Plain:
    """A body whose members are `data` and options; see `visionserve.protocols.reply.Form`."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def fields(self) -> dict[str, Any]:
        """Return the body's members."""
        return dict(self._body)

    def reply(self, outcomes: Sequence[Outcome], many: bool, name: str, version: str) -> Reply:
        """Return a list for a list, in the same order, with errors in the places of answers."""
        bodies = [body_of(outcome) for outcome in outcomes]
        return Reply(status_of(outcomes, many), bodies if many else bodies[0])
