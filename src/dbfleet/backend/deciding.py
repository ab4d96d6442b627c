"""What the decisions of one alias depend on: its shard map, its tables, its settings.

A part of :class:`~dbfleet.backend.routing.Routing`. The only I/O is the shard map's,
once in a process, and a directory's, once for each key.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from django.apps import apps

from dbfleet import conf, sessions
from dbfleet.executor import costs
from dbfleet.executor.emulated import emulated
from dbfleet.executor.replicas import Place
from dbfleet.planner import forced
from dbfleet.planner.ranges import Span
from dbfleet.planner.sources import Sources
from dbfleet.planner.tables import Table, Tables
from dbfleet.planner.uses import Facts
from dbfleet.sessions import Level
from dbfleet.sharding import keys, ledger


class Deciding:
    """Facts for the planner, and places for the executor."""

    wrapper: Any
    topology: Any
    tables: Tables
    _settings: Any
    _places: dict[str, Place]
    _has_own_places: bool
    _kept: Any
    in_transaction: Any
    lookup_fields: Any

    # -- facts ------------------------------------------------------------------

    def facts(self, *, only_gather: bool = False) -> Facts:
        """What decisions depend on; reads the shard map once in a process."""
        return Facts(
            self.topology,
            self.wrapper.engine,
            self.tables,
            self.shard_of,
            self.in_transaction(),
            only_gather or forced.only_gather,
            lookup_fields=self.lookup_fields,
            shards_in=None if self.topology.map is None else self.shards_in,
            find_shards=self.find_shards,
            read_epoch=partial(ledger.known_epoch, self.wrapper),
            only_scatter=forced.only_scatter,
            sources=self.sources(),
        )

    def sources(self) -> Sources:
        """Where gathers may have their rows from; what they cost is asked when needed,
        and of this process's memory alone."""
        setting = conf.settings().gather_for(self.topology).source
        alias = self.topology.alias
        return Sources(
            "rows" if emulated else setting,
            partial(costs.measured, alias),
            partial(costs.fault, alias),
            self._kept is not None and self._kept is self.wrapper.connection,
        )

    def shard_of(self, fields: tuple[Any, ...], values: tuple[Any, ...]) -> str:
        """The shard of a row with this key; raises E409 where the map has none."""
        known = ledger.shard_map(self.wrapper)
        shard = known.assign(fields, values, self.wrapper)
        if shard is None:
            raise keys.uncovered(self.topology, fields, values)
        return shard

    def shards_of(
        self, fields: tuple[Any, ...], columns: Sequence[Sequence[Any]]
    ) -> list[str]:
        """The shards of many rows, given by the columns of their keys; in order.

        Raises as :meth:`shard_of`.
        """
        assign = ledger.shard_map(self.wrapper).assign_all

        def place(given: list[tuple[Any, ...]]) -> list[str]:
            shards = assign(fields, given, self.wrapper)
            if None in shards:
                values = given[shards.index(None)]
                raise keys.uncovered(self.topology, fields, values)
            return shards  # type: ignore[return-value]

        return keys.each_once(place, columns)

    def find_shard(
        self, fields: tuple[Any, ...], values: tuple[Any, ...]
    ) -> str | None:
        """The shard of rows with this key; None where there can be no such row."""
        return ledger.shard_map(self.wrapper).place(fields, values, self.wrapper)

    def find_shards(
        self, fields: tuple[Any, ...], given: list[tuple[Any, ...]]
    ) -> list[str | None]:
        """The shards of many keys, in order; a directory is asked at once."""
        return ledger.shard_map(self.wrapper).place_all(fields, given, self.wrapper)

    def shards_in(self, field: Any, values: Span) -> frozenset[str] | None:
        """The shards of keys in a range; None means any."""
        return ledger.shard_map(self.wrapper).between(field, values)

    def table_of(self, opts: Any) -> Table:
        return self.tables.of(
            opts.concrete_model._meta if opts.concrete_model else opts
        )

    def names_local_tables(self, sql: str) -> bool:
        """Whether a text mentions a table of home's own."""
        found = self.tables.named_in(sql, self.wrapper.vendor, apps)
        return any(not t.is_sharded and not t.is_reference for t, _ in found)

    def policy(self, cluster: str, model: Any = None) -> Any:
        """How a replica is chosen: the model's policy, the cluster's, the setting's."""
        declared = self.wrapper.nodes.clusters[cluster]
        names = (model._meta.app_label, model._meta.model_name) if model else ()
        return conf.settings().policy_for(declared, *names)

    def level(self, query: Any = None) -> Level:
        """How old an answer may be: the queryset's level, the block's, the model's,
        the alias's, the setting's."""
        own = getattr(query, "fleet_level", None) or sessions.chosen_level()
        if own is not None:
            return own
        settings = conf.settings()
        if settings.levels and query is not None and query.model is not None:
            opts = query.model._meta
            own = conf.most_specific(settings.levels, opts.app_label, opts.model_name)
        return own or self.topology.consistency or settings.consistency

    def place(self, cluster: str, query: Any) -> Place:
        """Where a read goes: the cluster, how a replica is chosen, how old it may be.

        The usual place is looked up once for each set of settings.
        """
        settings = conf.settings()
        if settings is not self._settings:
            self._settings, self._places = settings, {}
            self._has_own_places = bool(settings.policies or settings.levels)
        has_own = query is not None and (
            self._has_own_places or "fleet_level" in query.__dict__
        )
        if has_own or sessions.chosen_level() is not None:
            model = query.model if query is not None else None
            return Place(cluster, self.policy(cluster, model), self.level(query))
        place = self._places.get(cluster)
        if place is None:
            place = Place(cluster, self.policy(cluster), self.level())
            self._places[cluster] = place
        return place
