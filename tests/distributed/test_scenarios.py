"""What a project sees on Citus, and on a stand-in that only records and refuses."""

from __future__ import annotations

import pytest

from tests.distributed import scenarios
from tests.distributed.conftest import Depot

EVERYWHERE = "check_"


@pytest.mark.parametrize("check", scenarios.names(EVERYWHERE, "citus_"))
def test_on_citus(citus: Depot, check: str) -> None:
    citus.pass_or_fail(check, EVERYWHERE, "citus_")


@pytest.mark.parametrize("check", scenarios.names(EVERYWHERE, "stand_in_"))
def test_on_the_stand_in(stand_in: Depot, check: str) -> None:
    """One PostgreSQL database with functions that record how they were called and
    refuse what Citus documents: what is sent is tested, not what Citus makes of it."""
    stand_in.pass_or_fail(check, EVERYWHERE, "stand_in_")


def test_tables_are_laid_out_as_declared(citus: Depot) -> None:
    found = citus.laid_out(
        "SELECT table_name::text, citus_table_type, distribution_column, colocation_id "
        "FROM citus_tables"
    )
    kinds = {row[0]: row[1:3] for row in found}
    assert kinds == {
        "depot_region": ("reference", "<none>"),
        "depot_tag": ("reference", "<none>"),
        "depot_customer": ("distributed", "id"),
        "depot_order": ("distributed", "customer_id"),
        "depot_line": ("distributed", "customer_id"),
        "depot_order_tags": ("distributed", "id"),
        "depot_setting": ("local", "<none>"),  # it refers to a reference table
    }
    spread = {row[3] for row in found if row[1] == "distributed"}
    assert len(spread) == 1


def test_what_is_sent_lays_tables_out(stand_in: Depot) -> None:
    found = stand_in.laid_out(
        "SELECT logicalrelid::text, partmethod::text, partcolumn, colocated "
        "FROM pg_dist_partition"
    )
    assert set(found) == {
        ("depot_region", "n", None, None),
        ("depot_setting", "n", None, None),  # local, and refers to a reference table
        ("depot_tag", "n", None, None),
        ("depot_customer", "h", "id", "default"),
        ("depot_order", "h", "customer_id", '"depot_customer"'),
        ("depot_line", "h", "customer_id", '"depot_customer"'),
        ("depot_order_tags", "h", "id", "default"),
    }


def test_unique_columns_are_indexed_still(stand_in: Depot) -> None:
    found = stand_in.laid_out(
        "SELECT indexdef FROM pg_indexes WHERE tablename = 'depot_order'"
    )
    text = "\n".join(row[0] for row in found)
    assert "UNIQUE INDEX depot_number" in text
    assert text.count("UNIQUE") == 1
    assert "btree (id)" in text
    assert "btree (code)" in text


def test_status_names_the_extension(citus: Depot) -> None:
    said = citus.manage("fleet", "status", "--database", "default").stdout
    assert "(citus " in said
    assert "workers)" in said
