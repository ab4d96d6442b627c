"""Sources: where a cluster's replicas are found while the project runs.

Given in place of the list of replicas. What a source finds is a list of nodes, each as
it may stand in that list: a URL or a dict that says what differs from the primary.

Guards two invariants: a source is asked only where its cluster is read, at most once
in ``every_s``; and no text made of one shows a password.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from dbfleet.topology.mistakes import Mistakes, unknown_name
from dbfleet.topology.nodes import read_node
from dbfleet.topology.values import freeze, masked, thaw

#: more replicas than this are taken for a mistake of the source
MAX_FOUND = 100
MAX_FILE_BYTES = 2**20
MAX_EVERY_S = 3600.0
MAX_TIMEOUT_S = 60.0

_HOST = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d+))?")
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


class SourceFailed(Exception):
    """A source could not say which replicas there are; its text has no secret."""


class Source:
    """Finds the replicas of a cluster, again and again.

    A subclass is immutable. ``every_s``: seconds after which the answer is asked for
    again (with jitter), by the read that comes first. ``timeout_s``: how long that read
    waits for it.
    """

    #: what says in a plain dict which source it is
    KEY: ClassVar[str]
    every_s: float
    timeout_s: float

    def find(self) -> Iterable[Any]:
        """The replicas there are now, as URLs or dicts.

        Runs in a thread of its own. An empty answer says that there is no replica; a
        source that does not know raises, :class:`SourceFailed` with its reason, and the
        replicas that were found last stay.
        """
        raise NotImplementedError

    def check(self, where: str, mistakes: Mistakes) -> None:
        """Tell what is wrong with it; no I/O."""
        for name, limit in (("every_s", MAX_EVERY_S), ("timeout_s", MAX_TIMEOUT_S)):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 < value <= limit:
                mistakes.add(
                    "E004",
                    where,
                    f"REPLICAS {name.upper()} must be more than 0 and at most "
                    f"{limit:g} seconds, not {value!r}",
                )

    def template(self) -> dict[str, Any]:
        """What the source itself says of every node; no I/O."""
        given = getattr(self, "node", None)
        return (_template("REPLICAS", given, Mistakes()) or {}) if given else {}

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{one.name}={masked(getattr(self, one.name))}"
            for one in fields(self)  # type: ignore[arg-type]
        )
        return f"{type(self).__name__}({shown})"


@dataclass(frozen=True, init=False, repr=False)
class Dns(Source):
    """One replica for each address (A, AAAA) of a host name.

    ``node`` is ``"host"``, ``"host:port"``, or a URL or dict whose host is the name.
    Asked through the system's resolver. A name without an address is a failure, not an
    empty answer: the resolver does not tell the one from the other.
    """

    KEY = "DNS"
    node: Any
    every_s: float = 30.0
    timeout_s: float = 2.0

    def __init__(
        self,
        node: str | Mapping[str, Any],
        *,
        every_s: float = 30.0,
        timeout_s: float = 2.0,
    ) -> None:
        _set(self, node=freeze(node), every_s=every_s, timeout_s=timeout_s)

    def check(self, where: str, mistakes: Mistakes) -> None:
        super().check(where, mistakes)
        node = _template(where, self.node, mistakes)
        if node is None:
            return
        host = node.get("HOST")
        if not isinstance(host, str) or not host or "," in host or "/" in host:
            mistakes.add("E004", where, "REPLICAS DNS needs one host name")

    def find(self) -> list[dict[str, Any]]:
        node = self.template()
        host = node["HOST"]
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise SourceFailed(
                f"no address of {host} was found ({error.strerror or error})"
            ) from error
        # Servers give them in turn; in an order of their own they are comparable.
        addresses = sorted({str(one[4][0]) for one in found})
        return [{**node, **_at(node, host, address)} for address in addresses]


@dataclass(frozen=True, init=False, repr=False)
class Srv(Source):
    """One replica for each SRV record of a name: its host and its port.

    ``name`` such as ``"_postgresql._tcp.replicas.internal"``. ``node`` is a URL or a
    dict that says the rest. Of several priorities the lowest number counts; weights are
    a policy's matter. ``nameservers`` are ``"address"`` or ``"address:port"``, the
    system's where none is given. Needs dnspython: ``django-dbfleet[dns]``.
    """

    KEY = "SRV"
    name: str
    node: Any = None
    nameservers: tuple[str, ...] = ()
    every_s: float = 30.0
    timeout_s: float = 2.0

    def __init__(
        self,
        name: str,
        *,
        node: str | Mapping[str, Any] | None = None,
        nameservers: Iterable[str] = (),
        every_s: float = 30.0,
        timeout_s: float = 2.0,
    ) -> None:
        _set(
            self,
            name=name,
            node=freeze(node),
            nameservers=freeze(nameservers)
            if isinstance(nameservers, str)
            else tuple(nameservers),
            every_s=every_s,
            timeout_s=timeout_s,
        )

    def check(self, where: str, mistakes: Mistakes) -> None:
        super().check(where, mistakes)
        if not isinstance(self.name, str) or "." not in self.name:
            mistakes.add(
                "E004",
                where,
                "REPLICAS SRV must be a name such as "
                f"'_postgresql._tcp.replicas.internal', not {self.name!r}",
            )
        if isinstance(self.nameservers, str) or not all(
            isinstance(one, str) and _HOST.fullmatch(one) for one in self.nameservers
        ):
            mistakes.add(
                "E004", where, "REPLICAS NAMESERVERS must be a list of 'address:port'"
            )
        if self.node is not None:
            _template(where, self.node, mistakes)
        try:
            import dns.resolver  # noqa: F401
        except ImportError:
            mistakes.add(
                "E004",
                where,
                "REPLICAS SRV needs dnspython: pip install 'django-dbfleet[dns]'",
            )

    def find(self) -> list[dict[str, Any]]:
        import dns.exception
        import dns.resolver

        resolver = dns.resolver.Resolver(configure=not self.nameservers)
        if self.nameservers:
            resolver.nameservers = [self._server(one) for one in self.nameservers]
        try:
            answer = resolver.resolve(self.name, "SRV", lifetime=self.timeout_s)
        except (dns.exception.DNSException, OSError) as error:
            raise SourceFailed(
                f"no SRV record of {self.name} was found ({type(error).__name__})"
            ) from error
        records: list[Any] = list(answer)
        best = min(one.priority for one in records)
        found = sorted(
            (one.target.to_text(omit_final_dot=True), int(one.port))
            for one in records
            if one.priority == best
        )
        node = self.template()
        # A dot alone says that the service is not to be had (RFC 2782).
        return [{**node, "HOST": h, "PORT": p} for h, p in found if h not in ("", ".")]

    def _server(self, given: str) -> Any:
        import dns.nameserver

        match = _HOST.fullmatch(given)
        assert match is not None
        address, port = match["host"].strip("[]"), int(match["port"] or 53)
        return dns.nameserver.Do53Nameserver(address, port)


@dataclass(frozen=True, init=False, repr=False)
class File(Source):
    """The nodes that a file lists: a JSON list of URLs and dicts, or one URL a line.

    Lines that begin with ``#`` are comments. ``[]`` says that there is no replica; a
    file that is empty or missing is a failure, since that may be half of a change.
    Replace the file as a whole (write another one and rename it).
    """

    KEY = "FILE"
    path: str | Path
    every_s: float = 5.0
    timeout_s: float = 2.0

    def __init__(
        self, path: str | Path, *, every_s: float = 5.0, timeout_s: float = 2.0
    ) -> None:
        _set(self, path=path, every_s=every_s, timeout_s=timeout_s)

    def check(self, where: str, mistakes: Mistakes) -> None:
        super().check(where, mistakes)
        if not isinstance(self.path, str | Path) or not str(self.path):
            mistakes.add(
                "E004", where, f"REPLICAS FILE must be a path, not {self.path!r}"
            )

    def find(self) -> list[Any]:
        try:
            with open(self.path, encoding="utf-8") as source:
                text = source.read(MAX_FILE_BYTES + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise SourceFailed(
                f"{self.path} cannot be read ({type(error).__name__})"
            ) from error
        if len(text) > MAX_FILE_BYTES:
            raise SourceFailed(f"{self.path} is larger than {MAX_FILE_BYTES} bytes")
        if not text.strip():
            raise SourceFailed(
                f"{self.path} is empty; [] says that there is no replica"
            )
        if text.lstrip().startswith("["):
            try:
                return list(json.loads(text))
            except ValueError as error:
                raise SourceFailed(f"{self.path} is no JSON") from error
        lines = [line.strip() for line in text.splitlines()]
        return [line for line in lines if line and not line.startswith("#")]


@dataclass(frozen=True, init=False, repr=False)
class Call(Source):
    """What a function returns: an iterable of URLs and dicts.

    ``function`` is a callable without arguments, or its dotted path, imported when it
    is first called. It runs in a thread of its own; what it raises is a failure.
    """

    KEY = "CALL"
    function: str | Callable[[], Iterable[Any]]
    every_s: float = 30.0
    timeout_s: float = 2.0

    def __init__(
        self,
        function: str | Callable[[], Iterable[Any]],
        *,
        every_s: float = 30.0,
        timeout_s: float = 2.0,
    ) -> None:
        _set(self, function=function, every_s=every_s, timeout_s=timeout_s)

    def check(self, where: str, mistakes: Mistakes) -> None:
        super().check(where, mistakes)
        is_path = isinstance(self.function, str) and _PATH.fullmatch(self.function)
        if not is_path and not callable(self.function):
            mistakes.add(
                "E004",
                where,
                "REPLICAS CALL must be a function or its dotted path, not "
                f"{masked(self.function)}",
            )

    def find(self) -> Iterable[Any]:
        return self.resolved()()

    def resolved(self) -> Callable[[], Iterable[Any]]:
        """The function; raises SourceFailed where its path leads to none."""
        if not isinstance(self.function, str):
            return self.function
        module, _, name = self.function.rpartition(".")
        try:
            found: Any = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise SourceFailed(
                f"{self.function} cannot be imported ({error})"
            ) from error
        if not callable(found):
            raise SourceFailed(f"{self.function} is no function")
        return found  # type: ignore[no-any-return]


_KINDS: dict[str, Any] = {one.KEY: one for one in (Dns, Srv, File, Call)}


def is_source(given: object) -> bool:
    """Whether what stands for the replicas is meant as a source."""
    return isinstance(given, Source | Mapping) or (
        callable(given) and not isinstance(given, type)
    )


def read_source(where: str, given: object, mistakes: Mistakes) -> Source | None:
    """A source, a callable, or the plain dict of one, such as ``{"FILE": path}``."""
    before = len(mistakes)
    if isinstance(given, Mapping):
        source = _of_dict(where, given, mistakes)
    elif isinstance(given, Source):
        source = given
    else:
        source = Call(given)  # type: ignore[arg-type]
    if source is not None:
        source.check(where, mistakes)
    return source if len(mistakes) == before else None


def _of_dict(where: str, given: Mapping[str, Any], mistakes: Mistakes) -> Source | None:
    kinds = [key for key in _KINDS if key in given]
    if len(kinds) != 1:
        mistakes.add(
            "E004",
            where,
            f"REPLICAS must be a list of nodes, or one of {', '.join(_KINDS)}, e.g. "
            "{'FILE': '/etc/shop/replicas.json'}",
        )
        return None
    kind = _KINDS[kinds[0]]
    first, *more = (one.name for one in fields(kind))
    known = {kind.KEY: first, **{name.upper(): name for name in more}}
    if kind is Dns:
        known.pop("NODE", None)
    values = {}
    for key, value in given.items():
        if key in known:
            values[known[key]] = value
        else:
            mistakes.add("E006", where, f"REPLICAS option {unknown_name(key, known)}")
    return kind(values.pop(first), **values)  # type: ignore[no-any-return]


def _template(where: str, given: Any, mistakes: Mistakes) -> dict[str, Any] | None:
    """What a source says itself of the nodes it finds."""
    if isinstance(given, str) and "://" not in given:
        match = _HOST.fullmatch(given)
        if match is None:
            mistakes.add("E004", where, "REPLICAS names no host and no URL")
            return None
        port = {"PORT": match["port"]} if match["port"] else {}
        return {"HOST": match["host"].strip("[]"), **port}
    if not isinstance(given, str | Mapping):
        mistakes.add("E004", where, "REPLICAS needs a URL or a dict for its nodes")
        return None
    return read_node(where, thaw(given), mistakes)


def _at(node: Mapping[str, Any], host: str, address: str) -> dict[str, Any]:
    """``node`` at one address of its host."""
    options = node.get("OPTIONS", {})
    if options.get("sslmode") == "verify-full":
        # libpq goes to the address and compares the certificate with the name.
        return {"OPTIONS": {**options, "hostaddr": address}}
    return {"HOST": address}


def _set(source: Source, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(source, name, value)
