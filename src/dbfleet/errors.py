"""Every exception of dbfleet and the catalogue of its stable codes.

Guards one invariant: an error names what was refused, why, what to do, and a
code that never changes its meaning. Imports nothing of dbfleet, so every room
may raise from here.

Classes derive from the Django exception a caller would already catch, so
``except OperationalError`` keeps working when an alias becomes a fleet.
"""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured
from django.db.utils import (
    DatabaseError,
    DataError,
    IntegrityError,
    InternalError,
    NotSupportedError,
    OperationalError,
)
from django.utils.connection import ConnectionDoesNotExist

#: code -> what it means, one line; ``docs/reference/errors.md`` explains each.
CATALOGUE: dict[str, str] = {
    # 0xx: the declaration of a fleet (settings)
    "E001": "an entry of DATABASES does not describe a cluster or a sharded database",
    "E002": "a database URL cannot be read",
    "E003": "two nodes of a fleet are the same database",
    "E004": "an option of a fleet has a wrong type or value",
    "E005": "two settings contradict each other",
    "E006": "an option or setting is unknown",
    "E007": "a selection policy cannot be used",
    "E008": "the nodes of an alias are of different engines",
    # 1xx: placement
    "E101": "a placement names an alias that does not exist",
    "E102": "a setting names an app or model that does not exist",
    "E103": "a shard key does not exist on its model",
    "E104": "a shard key may be NULL",
    "E105": "a unique constraint cannot be enforced over all shards",
    "E106": "a shard key is declared for a model that is not on a sharded alias",
    "E107": "a database value given at run time cannot be used",
    "E108": "too many run-time databases are open",
    "E109": "models are placed but the placement router is not installed",
    "E110": "a primary key cannot hold the ids that a setting gives it",
    "E111": "a lookup cannot be kept for a field",
    "E112": "a distributed engine cannot spread a model by its shard key",
    "W105": "a unique constraint is enforced over all shards through home",
    # 2xx: clusters and nodes
    "E201": "a replica belongs to another server than its primary",
    "E202": "a primary is read-only",
    "E203": "a replica accepts writes",
    "E204": "a node cannot be reached",
    "E205": "an alias is read-only",
    "E206": "no replica can serve and the primary has taken its share of reads",
    "E207": "a write was lost when another server was promoted",
    "E208": "a read stopped after some of its rows",
    "E209": "another server was promoted",
    "E210": "a coordinator lacks its distributed engine",
    # 3xx: queries across aliases
    "E301": "a query touches models placed on different aliases",
    # 4xx: shards
    "E401": "a row has no shard key",
    "E402": "a raw statement cannot be routed on a sharded alias",
    "E403": "the shard map and the settings disagree",
    "E404": "the shard of a row cannot be determined",
    "E406": "a schema change stopped between shards",
    "E407": "no worker number for time-ordered ids could be had",
    "E408": "time-ordered ids are too far from home's clock",
    "E409": "the shard map does not cover a key",
    "E410": "a distributed engine cannot lock rows of several shard keys",
    "E411": "a row cannot change its shard with the rows that refer to it",
    "E412": "more rows would change their shard than the limit",
    "E413": "a key cannot be placed on a shard",
    "E414": "claims are kept elsewhere than the settings say",
    "E415": "an UPDATE reads what it has assigned",
    # 5xx: gather
    "E501": "a query of several shards needs more rows than its limit",
    "E502": "a query of several shards needs more bytes than its limit",
    "E503": "a table of a gather is not known",
    "E504": "a page lies too deep",
    "E505": "a shard did not answer in time",
    "E506": "the foreign tables of a gather cannot be used",
    "E507": "home cannot read a shard through its foreign tables",
    "E508": "foreign tables cannot be made",
    # 6xx: transactions
    "E601": "a server cannot prepare transactions",
    "E602": "the outcome of a commit is unknown",
    "E603": "a commit is decided but not finished on every node",
    "E604": "a rollback is decided but a node may still hold its part",
}


class FleetError(Exception):
    """Base of all dbfleet errors; ``code`` is a key of :data:`CATALOGUE`."""

    code: str

    def __init__(self, code: str, message: str) -> None:
        assert code in CATALOGUE, code
        self.code = f"dbfleet.{code}"
        self._given = code, message
        super().__init__(f"{message} ({self.code})")

    def __reduce__(self) -> tuple[type[FleetError], tuple[str, str]]:
        # Process pools and parallel test runners send errors to their parent.
        return type(self), self._given


class ConfigurationError(FleetError, ImproperlyConfigured):
    """The declaration of a fleet is wrong; raised at start-up, nothing was done."""


class RuntimeDatabaseError(FleetError, ConnectionDoesNotExist):
    """A database given at run time cannot be used here; nothing was opened."""


class RouteRefused(FleetError, NotSupportedError):
    """No rung is proved right for this statement; nothing was sent."""


class CrossAliasQuery(RouteRefused):
    """A statement needs tables of several aliases; nothing was sent."""


class GatherLimitExceeded(RouteRefused):
    """A gather, or groups to be combined, would pass a limit; nothing was changed."""


class MoveRefused(RouteRefused):
    """Rows cannot change their shard as a statement says; nothing was written."""


class PageTooDeep(RouteRefused):
    """An OFFSET over several shards would fetch too many rows; nothing was sent."""


class FanoutTimeout(FleetError, OperationalError):
    """Shards did not answer in time; a read that is part of nothing can be repeated."""


class ForeignTablesRefused(FleetError, NotSupportedError):
    """Foreign tables cannot be made in home; nothing was changed."""


class ReadOnlyAlias(RouteRefused):
    """A write was addressed to an alias declared read-only; nothing was sent."""


class NodeUnavailable(FleetError, OperationalError):
    """A node did not answer; the message names it and what was not done."""


class ReplicasUnavailable(FleetError, OperationalError):
    """No replica can serve and the primary has enough; nothing was sent.

    Temporary: a site answers ``status_code`` with ``Retry-After: retry_after_s``.
    """

    status_code = 503
    #: seconds
    retry_after_s = 1


class WriteLost(FleetError, DatabaseError):
    """A write of this session is not in the history of the promoted server."""


class ReadInterrupted(FleetError, OperationalError):
    """A server was lost after some rows of a read were handed out."""


class NodeMismatch(FleetError, OperationalError):
    """A node is not what the settings say (role, system, engine)."""


class SchemaChangeStopped(FleetError, DatabaseError):
    """A schema change is done on some nodes; ``migrate`` goes on where it stopped."""


class NullShardKey(FleetError, IntegrityError):
    """A row without a shard key cannot be placed; nothing was written."""


class InvalidShardKey(FleetError, DataError):
    """A shard key's value cannot be turned into a shard; nothing was written."""


class UncoveredShardKey(InvalidShardKey):
    """The declared shard map has no shard for a row's key; nothing was written."""


class PlacementRefused(FleetError, DataError):
    """A key cannot be placed on a shard by the alias's directory; nothing changed."""


class IdsUnavailable(FleetError, OperationalError):
    """No id can be made for a row; nothing was written."""


class TransactionAborted(InternalError):
    """A node's transaction failed; only a rollback is accepted, as on one server."""


class TwoPhaseUnavailable(FleetError, OperationalError):
    """Several nodes were written but a server cannot prepare; all was rolled back."""


class CommitUnknown(FleetError, OperationalError):
    """A commit, or a write that is its own, got no answer: it may have happened."""


class CommitPending(FleetError, OperationalError):
    """A commit is decided and durable; some nodes must still be told."""


class RollbackPending(FleetError, OperationalError):
    """A transaction is rolled back; some nodes may hold it prepared until told."""
