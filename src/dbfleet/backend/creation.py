"""Test databases of a fleet: one for every primary, and no replica unless asked."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from dbfleet.executor import discovery


@lru_cache(maxsize=32)
def creation_class(vendor_class: type) -> type:
    """The vendor's creation as a fleet's."""
    return type("DatabaseCreation", (FleetCreation, vendor_class), {})


class FleetCreation:
    """Creates, clones and destroys the test database of every primary."""

    connection: Any

    def _shard_nodes(self) -> list[Any]:
        """The primaries of the shards; home's is the connection itself."""
        if self.connection.topology is None:
            return []
        shards = self.connection.topology.shards.values()
        return [self.connection.nodes.node(shard.primary) for shard in shards]

    def _create_test_db(
        self, verbosity: int, autoclobber: bool, keepdb: bool = False
    ) -> str:
        from dbfleet.sharding import ids, ledger  # only tests create databases

        name: str = super()._create_test_db(verbosity, autoclobber, keepdb)  # type: ignore[misc]
        for node in self._shard_nodes():
            node.close()
            shard_name = node.creation._create_test_db(verbosity, autoclobber, keepdb)
            node.settings_dict.setdefault("DECLARED_NAME", node.settings_dict["NAME"])
            node.settings_dict["NAME"] = shard_name
        self._rename_replicas(name)
        self._leave_replicas_out()
        ledger.forget_alias(self.connection.alias)
        ids.forget(self.connection)
        return name

    def _rename_replicas(self, home_name: str) -> None:
        discovery.forget(self.connection.alias)  # what was found has the old names
        topology = self.connection.topology
        nodes = self.connection.settings_dict["NODES"]
        for cluster in topology.clusters:
            is_home = cluster is topology.home
            name = home_name if is_home else nodes[cluster.primary]["NAME"]
            renamed = (
                (cluster.primary, *cluster.replicas) if is_home else cluster.replicas
            )
            for node in renamed:
                nodes[node].setdefault("DECLARED_NAME", nodes[node]["NAME"])
                nodes[node]["NAME"] = name

    def _leave_replicas_out(self) -> None:
        """A cluster of a test run is its primary: a replica, where there is one, would
        lag behind one test while the next one runs. ``TEST={"REPLICAS": True}`` reads
        from the replicas of the test database all the same."""
        connection = self.connection
        if not connection.settings_dict["TEST"].get("REPLICAS"):
            connection.settings_dict["REPLICAS_OFF"] = True
            connection.nodes.is_alone = True

    def set_as_test_mirror(self, primary_settings_dict: dict[str, Any]) -> None:
        """The alias shows another alias's test database, from that one's primary."""
        super().set_as_test_mirror(primary_settings_dict)  # type: ignore[misc]
        if self.connection.topology is not None:
            self._rename_replicas(self.connection.settings_dict["NAME"])
            self._leave_replicas_out()

    def destroy_test_db(
        self,
        old_database_name: str | None = None,
        verbosity: int = 1,
        keepdb: bool = False,
        suffix: str | None = None,
    ) -> None:
        self._suffix = suffix
        super().destroy_test_db(old_database_name, verbosity, keepdb, suffix)  # type: ignore[misc]
        if suffix is not None:
            return
        discovery.forget(self.connection.alias)
        for node in self._shard_nodes():
            node.close()
        if self.connection.settings_dict.pop("REPLICAS_OFF", False):
            self.connection.nodes.is_alone = False
        for settings in self.connection.settings_dict.get("NODES", {}).values():
            if "DECLARED_NAME" in settings:
                settings["NAME"] = settings.pop("DECLARED_NAME")

    def _destroy_test_db(self, test_database_name: str, verbosity: int) -> None:
        super()._destroy_test_db(test_database_name, verbosity)  # type: ignore[misc]
        for node in self._shard_nodes():
            node.close()
            if "DECLARED_NAME" not in node.settings_dict:
                continue  # not a test database
            name = node.settings_dict["NAME"]
            if self._suffix is not None:
                name = node.creation.get_test_db_clone_settings(self._suffix)["NAME"]
            node.creation._destroy_test_db(name, verbosity)

    def _clone_test_db(self, suffix: str, verbosity: int, keepdb: bool = False) -> None:
        super()._clone_test_db(suffix, verbosity, keepdb)  # type: ignore[misc]
        for node in self._shard_nodes():
            node.close()
            node.creation._clone_test_db(suffix, verbosity, keepdb)

    def setup_worker_connection(self, worker_id: int) -> None:
        nodes = self._shard_nodes()
        for node in nodes:
            node.creation.setup_worker_connection(worker_id)
        super().setup_worker_connection(worker_id)  # type: ignore[misc]
        if self.connection.topology is not None:
            self._rename_replicas(self.connection.settings_dict["NAME"])
            self._leave_replicas_out()

    def test_db_signature(self) -> Any:
        own = super().test_db_signature()  # type: ignore[misc]
        nodes = [node.creation.test_db_signature() for node in self._shard_nodes()]
        return (*own, *nodes)
