"""An operator takes a replica out of service, for every process."""

from __future__ import annotations

from tests.clusters.conftest import Fleet

DRAINED = """
from django.conf import settings
from django.core.management import call_command
from django.test import override_settings
from dbfleet.health import drain


def drained(*arguments, on=True, read=lambda: turns(6)):
    with override_settings(DBFLEET={**settings.DBFLEET, "DRAINS": on}):
        if arguments:
            call_command("fleet", *arguments, verbosity=0)
        drain.reset()  # as after some seconds
        return sorted(set(read()))
"""


def test_a_drained_replica_serves_no_new_reads(fleet: Fleet) -> None:
    fleet.run(DRAINED)
    last = fleet.replicas[-1]
    others = sorted(set(fleet.replicas) - {last}) or ["primary"]
    try:
        assert fleet.ask(f"drained('drain', 'default/{last}')") == others
        assert fleet.ask("drained()") == others
        # Who is not to follow drains asks nobody and sees none.
        assert fleet.ask("drained(on=False)") == sorted(fleet.replicas)
    finally:
        found = fleet.ask(f"drained('undrain', 'default/{last}')")
    assert found == sorted(fleet.replicas)


def test_what_cannot_be_drained_is_refused(fleet: Fleet) -> None:
    fleet.run(DRAINED)
    for arguments, text in (
        ("'default/primary'", "there is no replica 'default/primary'"),
        ("'nobody'", "default/replica1"),
    ):
        found = fleet.ask(f"refused(drained, 'drain', {arguments})")
        assert found[0] == "CommandError"
        assert text in found[2]
    found = fleet.ask("refused(drained, 'drain', 'default/replica1', on=False)")
    assert "DBFLEET['DRAINS'] is not on" in found[2]
    assert fleet.ask("drained()") == sorted(fleet.replicas)
