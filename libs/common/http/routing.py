"""Which operation or page a method and a path mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from common.http.app import Handler
from common.rpc.contract import Operation

_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What answers a route; ``operation`` is None for a page."""

    template: str
    handler: Handler
    operation: Operation | None = None
    limited: bool = True

    @property
    def public(self) -> bool:
        return self.operation is None or self.operation.public


@dataclass(slots=True)
class _Node:
    literals: dict[str, _Node] = field(default_factory=dict)
    parameter: _Node | None = None
    methods: dict[str, tuple[Endpoint, tuple[str, ...]]] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Match:
    """What a path led to.

    ``endpoint`` is None where the path exists and the method does not; ``allow`` then names the
    methods. ``undecodable`` names path parameters whose percent-encoding is not UTF-8.
    """

    endpoint: Endpoint | None
    parameters: dict[str, str] = field(default_factory=dict)
    undecodable: tuple[str, ...] = ()
    allow: str = ""


class RouteTable:
    """Routes by path, prepared once. A literal segment wins over a parameter.

    Args:
        routes: methods and what answers them.
        elsewhere: methods and templates, also of paths that another process answers by other
            methods: whoever asks which ones there are is told of all.

    Raises:
        ValueError: two endpoints share a route, or a template is none that is understood.
    """

    def __init__(
        self,
        routes: Iterable[tuple[str, Endpoint]],
        elsewhere: Iterable[tuple[str, str]] = (),
    ) -> None:
        self._root = _Node()
        for method, endpoint in routes:
            self._add(method, endpoint)
        for method, template in elsewhere:
            node, _ = self._node(template)
            node.elsewhere |= {method, "HEAD"} if method == "GET" else {method}

    def _node(self, template: str) -> tuple[_Node, list[str]]:
        node, names = self._root, []
        for segment in _segments(template):
            name = segment[1:-1]
            if segment == f"{{{name}}}" and name.isidentifier():
                names.append(name)
                node.parameter = node.parameter or _Node()
                node = node.parameter
            elif "{" in segment or "*" in segment or ":" in segment:
                raise ValueError(f"{template}: a segment is a literal or {{name}}")
            else:
                node = node.literals.setdefault(segment, _Node())
        return node, names

    def _add(self, method: str, endpoint: Endpoint) -> None:
        node, names = self._node(endpoint.template)
        if method in node.methods:
            raise ValueError(f"{method} {endpoint.template} is routed twice")
        node.methods[method] = (endpoint, tuple(names))
        if method == "GET":
            node.methods.setdefault("HEAD", (endpoint, tuple(names)))

    def match(self, method: str, raw_path: str) -> Match | None:
        """The endpoint of a path as it was sent, percent-encoded.

        None for an unknown path, and where another process answers this method.
        """
        node: _Node | None = self._root
        values: list[str | None] = []
        for segment in _segments(raw_path):
            if node is None:
                return None
            text = decode_percent(segment)
            literal = node.literals.get(text) if text is not None else None
            if literal is not None:
                node = literal
            else:
                node = node.parameter
                values.append(text)
        if node is None or not node.methods or "" in values:
            return None
        found = node.methods.get(method)
        if found is None and method in node.elsewhere:
            return None
        if found is None:
            known = {*node.methods, *node.elsewhere, "OPTIONS"}
            return Match(None, allow=", ".join(sorted(known)))
        endpoint, names = found
        pairs = list(zip(names, values, strict=True))
        return Match(
            endpoint,
            {name: value for name, value in pairs if value is not None},
            tuple(name for name, value in pairs if value is None),
        )


def _segments(path: str) -> list[str]:
    return path.split("/")[1:]


def decode_percent(text: str) -> str | None:
    """The text that a percent-encoded one means; None where it means none (in UTF-8)."""
    if "%" not in text:
        return text if text.isascii() else None
    for escape in text.split("%")[1:]:
        if len(escape) < 2 or not _HEXADECIMAL.issuperset(escape[:2]):
            return None
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        return None
