"""What a user writes in ``settings.py``: ``Cluster``, ``Sharded``, ``databases()``.

Guards two invariants: importing this needs neither configured settings nor
models, and the text of a declaration shows no password.

A declaration does nothing by itself; :func:`databases` turns it into the plain
``DATABASES`` dict that may as well be written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict, Unpack

from dbfleet.levels import Level
from dbfleet.policies import Policy
from dbfleet.replicas import Source, is_source, read_source
from dbfleet.topology.loading import find_mistakes, is_fleet
from dbfleet.topology.maps import ShardMap
from dbfleet.topology.mistakes import Mistakes, unknown_name
from dbfleet.topology.nodes import BACKEND, read_node
from dbfleet.topology.snapshot import (
    DEFAULT_SLOTS,
    ClaimsPlace,
    CommitMode,
    GatherLimits,
)
from dbfleet.topology.values import FrozenDict, freeze, masked, thaw

#: A URL, a Django dict, or a callable that returns a URL when a connection opens.
Node = str | Mapping[str, Any] | Callable[[], str]
#: A list of nodes, or a source that finds them: see :mod:`dbfleet.replicas`.
Replicas = Iterable[Node] | Source | Mapping[str, Any] | Callable[[], Iterable[Any]]
PolicyGiven = str | Policy | type[Policy] | None


class DjangoKeys(TypedDict, total=False):
    """Django's own keys of an entry of ``DATABASES``, and ``ZONE``: defaults for all
    its nodes."""

    ATOMIC_REQUESTS: bool
    AUTOCOMMIT: bool
    CONN_HEALTH_CHECKS: bool
    CONN_MAX_AGE: int | None
    DISABLE_SERVER_SIDE_CURSORS: bool
    HOST: str | Callable[[], str]
    NAME: Any
    OPTIONS: dict[str, Any]
    PASSWORD: str | Callable[[], str]
    PORT: int | str | Callable[[], int | str]
    TEST: dict[str, Any]
    TIME_ZONE: str | None
    USER: str | Callable[[], str]
    ZONE: str


_NOTHING = FrozenDict()


class _Declared:
    """What both kinds of declaration share: immutability and safe text."""

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        shown = []
        for spec in fields(self):  # type: ignore[arg-type]
            value = getattr(self, spec.name)
            if spec.name == "django":
                shown += [f"{key}={_shown(key, item)}" for key, item in value.items()]
            elif value != spec.default:
                shown.append(f"{spec.name}={_shown(spec.name, value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _shown(name: str, value: Any) -> str:
    return masked({name: value})[len(f"{{{name!r}: ") : -1]


@dataclass(frozen=True, init=False, repr=False)
class Cluster(_Declared):
    """A primary and its replicas; each a URL, a Django dict or a callable.

    A replica's dict needs only what differs from the primary's. In place of the list of
    replicas a source of :mod:`dbfleet.replicas` finds them while the project runs.
    Capital keywords are Django's own keys, for all nodes: ``CONN_MAX_AGE=60``. Nothing
    is opened; mistakes are told by :func:`databases`.
    """

    primary: Any
    replicas: tuple[Any, ...] = ()
    read_only: bool = False
    policy: PolicyGiven = None
    consistency: str | Level | None = None
    django: FrozenDict = _NOTHING

    def __init__(
        self,
        primary: Node,
        *,
        replicas: Replicas = (),
        read_only: bool = False,
        policy: PolicyGiven = None,
        consistency: str | Level | None = None,
        **django: Unpack[DjangoKeys],
    ) -> None:
        self._set(
            primary=freeze(primary),
            replicas=_nodes(replicas),
            read_only=read_only,
            policy=policy,
            consistency=consistency,
            django=freeze(django),
        )

    def as_entry(self, where: str, mistakes: Mistakes) -> dict[str, Any]:
        """The entry of ``DATABASES`` that says the same."""
        entry: dict[str, Any] = {"ENGINE": BACKEND, "PRIMARY": thaw(self.primary)}
        if self.replicas != ():
            entry["REPLICAS"] = _thawed(self.replicas)
        if self.read_only is not False:
            entry["READ_ONLY"] = self.read_only
        if self.policy is not None:
            entry["POLICY"] = self.policy
        if self.consistency is not None:
            entry["CONSISTENCY"] = self.consistency
        return entry | _django_keys(self, where, mistakes)


@dataclass(frozen=True, init=False, repr=False)
class Sharded(_Declared):
    """Rows spread over shards; each shard a cluster, a URL, a dict or a callable.

    ``home`` holds what is not spread. Rows are placed by hash slots, ``slots`` of them,
    or as ``map`` says; both are fixed once rows exist. With ``engine="citus"`` there
    are no ``shards``: ``home`` is the coordinator, which spreads rows itself, and
    ``slots``, ``map``, ``commit`` and ``claims`` have no meaning.
    ``gather`` sets limits and the source, e.g. ``{"MAX_ROWS": 10_000}``. ``commit``
    says what a transaction over several nodes does where a server cannot prepare:
    ``"two_phase"`` refuses, ``"best_effort"`` commits one after another. ``claims``
    says where unique values are claimed, and lookups ask: ``"home"`` or ``"shards"``.
    Capital keywords are Django's own keys, for all nodes.
    """

    home: Any
    shards: Any = None
    slots: int = DEFAULT_SLOTS
    map: ShardMap | None = None
    policy: PolicyGiven = None
    gather: Any = _NOTHING
    commit: CommitMode = "two_phase"
    claims: ClaimsPlace = "home"
    read_only: bool = False
    consistency: str | Level | None = None
    engine: str | None = None
    django: FrozenDict = _NOTHING

    def __init__(
        self,
        *,
        home: Node | Cluster,
        shards: Mapping[str, Node | Cluster] | None = None,
        engine: str | None = None,
        slots: int = DEFAULT_SLOTS,
        map: ShardMap | Mapping[str, Any] | None = None,  # noqa: A002 - the setting
        policy: PolicyGiven = None,
        gather: Mapping[str, Any] | GatherLimits | None = None,
        commit: CommitMode = "two_phase",
        claims: ClaimsPlace = "home",
        read_only: bool = False,
        consistency: str | Level | None = None,
        **django: Unpack[DjangoKeys],
    ) -> None:
        self._set(
            home=freeze(home),
            shards=None if shards is None else freeze(shards),
            engine=engine,
            slots=slots,
            map=freeze(map),
            policy=policy,
            gather=_limits(gather),
            commit=commit,
            claims=claims,
            read_only=read_only,
            consistency=consistency,
            django=freeze(django),
        )

    def as_entry(self, where: str, mistakes: Mistakes) -> dict[str, Any]:
        """The entry of ``DATABASES`` that says the same."""
        entry: dict[str, Any] = {"ENGINE": BACKEND}
        home = self.home
        if isinstance(home, Cluster):
            if home.read_only or home.policy is not None:
                mistakes.add(
                    "E005",
                    f"{where}/home",
                    "read_only and policy are matters of the whole alias: give "
                    "them to Sharded(), not to its home",
                )
            entry |= home.as_entry(f"{where}/home", mistakes)
        else:
            entry["PRIMARY"] = thaw(home)
        if self.engine is not None:
            entry["DISTRIBUTED_BY"] = self.engine
        if self.shards is not None or self.engine is None:
            entry["SHARDS"] = self.shards
        if isinstance(self.shards, Mapping):
            entry["SHARDS"] = {
                name: _shard_entry(shard, f"{where}/{name}", mistakes)
                for name, shard in self.shards.items()
            }
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.name in _SHARDED_OPTIONS and value != spec.default:
                entry[spec.name.upper()] = thaw(value)
        return entry | _django_keys(self, where, mistakes)


_SHARDED_OPTIONS = (
    "slots",
    "map",
    "policy",
    "gather",
    "commit",
    "claims",
    "read_only",
    "consistency",
)

Declaration = Cluster | Sharded | Node


def databases(**aliases: Declaration) -> dict[str, dict[str, Any]]:
    """The ``DATABASES`` dict of these aliases, each on ``dbfleet.backend``.

    A URL, a dict or a callable alone is a cluster of one node; a dict that is
    already an entry of dbfleet's, and an empty one, pass unchanged. Opens nothing.
    Raises one ``ConfigurationError`` that tells every mistake of every alias.
    """
    mistakes = Mistakes()
    entries = {
        alias: _entry(alias, declared, mistakes) for alias, declared in aliases.items()
    }
    mistakes += find_mistakes(entries)
    mistakes.raise_any()
    return {
        alias: _without_urls(entry) if is_fleet(entry) else entry
        for alias, entry in entries.items()
    }


def entry_for(alias: str, declared: Declaration) -> dict[str, Any]:
    """The entry of one alias, as :func:`databases` makes it; raises as it does."""
    return databases(**{alias: declared})[alias]


def _entry(alias: str, declared: Declaration, mistakes: Mistakes) -> dict[str, Any]:
    if isinstance(declared, _Declared):
        return declared.as_entry(alias, mistakes)
    if isinstance(declared, Mapping) and (not declared or is_fleet(declared)):
        return dict(thaw(declared))
    return {"ENGINE": BACKEND, "PRIMARY": thaw(declared)}


def _shard_entry(shard: Any, where: str, mistakes: Mistakes) -> Any:
    if not isinstance(shard, Cluster):
        return thaw(shard)
    entry = shard.as_entry(where, mistakes)
    del entry["ENGINE"]
    return entry


def _without_urls(given: Any) -> Any:
    """A node, cluster or entry with its URLs read: no password inside a text."""
    if not isinstance(given, Mapping) or "PRIMARY" not in given:
        return read_node("a node", given, Mistakes())
    read = {**given, "PRIMARY": _without_urls(given["PRIMARY"])}
    if is_source(given.get("REPLICAS")):
        read["REPLICAS"] = read_source("REPLICAS", given["REPLICAS"], Mistakes())
    elif "REPLICAS" in given:
        read["REPLICAS"] = [_without_urls(replica) for replica in given["REPLICAS"]]
    if "SHARDS" in given:
        shards = given["SHARDS"].items()
        read["SHARDS"] = {name: _without_urls(shard) for name, shard in shards}
    return read


def _django_keys(
    declared: Cluster | Sharded, where: str, mistakes: Mistakes
) -> dict[str, Any]:
    known = DjangoKeys.__optional_keys__
    for key in declared.django:
        if key not in known:
            own = {spec.name for spec in fields(declared)} - {"django"}
            kind = type(declared).__name__
            mistakes.add(
                "E006", where, f"{kind}() argument {unknown_name(key, own | known)}"
            )
    return {key: thaw(declared.django[key]) for key in declared.django if key in known}


def _nodes(given: Any) -> Any:
    """A tuple of nodes; what is no sequence is kept: a source, or a mistake."""
    if isinstance(given, Mapping):
        return freeze(given)
    if isinstance(given, str) or not isinstance(given, Iterable):
        return given
    return tuple(freeze(node) for node in given)


def _thawed(nodes: Any) -> Any:
    if isinstance(nodes, tuple):
        return [thaw(node) for node in nodes]
    return thaw(nodes) if isinstance(nodes, Mapping) else nodes


def _limits(given: Mapping[str, Any] | GatherLimits | None) -> Any:
    if isinstance(given, GatherLimits):
        given = given._asdict()
    if given is None or not isinstance(given, Mapping):
        return FrozenDict() if given is None else given
    return FrozenDict({str(key).upper(): freeze(v) for key, v in given.items()})
