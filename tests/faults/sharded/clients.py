"""Clients: threads that use the alias as a project would, and note what it tells.

Guards one invariant: an outcome is noted as the error's class says, never guessed from
what is stored.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

from django.db import Error, close_old_connections, connections, transaction
from django.db.models import F

from dbfleet.errors import CommitPending, CommitUnknown, FleetError, RollbackPending
from tests.faults.sharded.history import Operation, Outcome
from tests.faults.sharded.models import Account, Entry, Person, Register, Slip

ACCOUNTS = 40
EMAILS = 60


class Clients:
    """Shares a number of operations between threads."""

    def __init__(self, count: int, operations: int, seed: str, first: int = 0) -> None:
        self.history: list[Operation] = []
        #: texts of errors that ask an operator to settle something
        self.unsettled: list[str] = []
        self.problems: list[str] = []
        self._numbers = itertools.count(first + 1)
        self._last = first + operations
        self._threads = [
            threading.Thread(target=self._work, args=(n, seed), name=f"client-{n}")
            for n in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def are_working(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; whether it came."""
        for thread in self._threads:
            thread.join(timeout_s)
        return not self.are_working

    def _work(self, client: int, seed: str) -> None:
        chance = random.Random(f"{seed}-{client}")
        try:
            while (number := next(self._numbers)) <= self._last:
                close_old_connections()
                self.history.append(self._operate(client, number, chance))
        except BaseException as error:
            self.problems.append(f"client {client} died of {error!r}")
            raise
        finally:
            connections.close_all()

    def _operate(self, client: int, number: int, chance: random.Random) -> Operation:
        kind = chance.choices(["transfer", "claim", "register"], [6, 2, 2])[0]
        if kind == "transfer":
            one, other = chance.sample(range(ACCOUNTS), 2)
            amount = chance.randint(1, 9)
            outcome, error = self._told(lambda: _transfer(number, one, other, amount))
            return Operation(number, kind, outcome, amount, None, client, error)
        if kind == "claim":
            email = f"e{chance.randrange(EMAILS)}"
            outcome, error = self._told(lambda: _claim(number, email))
            return Operation(number, kind, outcome, email, None, client, error)
        outcome, error = self._told(lambda: _register(client, number))
        seen = None
        with contextlib.suppress(Error):  # a read may fail; it may not be wrong
            seen = Register.objects.get(client=client).operation
        return Operation(number, kind, outcome, None, seen, client, error)

    def _told(self, action: Callable[[], Any]) -> tuple[Outcome, str]:
        try:
            with transaction.atomic():
                action()
        except CommitPending as error:
            self.unsettled.append(str(error))
            return Outcome.DONE, ""
        except CommitUnknown as error:
            self.unsettled.append(str(error))
            return Outcome.UNKNOWN, str(error)
        except RollbackPending as error:
            self.unsettled.append(str(error))
            return Outcome.REFUSED, str(error)
        except (Error, FleetError) as error:
            return Outcome.REFUSED, f"{type(error).__name__}: {error}"
        return Outcome.DONE, ""


def _transfer(number: int, one: int, other: int, amount: int) -> None:
    for account, change in ((one, -amount), (other, amount)):
        Account.objects.filter(pk=account).update(balance=F("balance") + change)
        Entry.objects.create(account=account, operation=number, amount=change)
    Slip.objects.create(operation=number)


def _claim(number: int, email: str) -> None:
    Person.objects.create(operation=number, email=email)


def _register(client: int, number: int) -> None:
    Register.objects.filter(client=client).update(operation=number)
