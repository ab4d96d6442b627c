"""What clients write: counters of one writer each, and lines with an operation's id."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models


class Register(models.Model):
    """Written by one client alone, which only ever counts up.

    A row names what its writer had seen of another register, so who reads the row
    must not see less of that one afterwards.
    """

    id = models.IntegerField(primary_key=True)
    counter = models.BigIntegerField(default=0)
    seen_register = models.IntegerField(default=0)
    seen_counter = models.BigIntegerField(default=0)

    objects: ClassVar[Any] = models.Manager()

    class Meta:
        app_label = "replicas"


class Line(models.Model):
    """One row for each appended operation; nothing keeps two of them apart."""

    operation = models.BigIntegerField(db_index=True)

    objects: ClassVar[Any] = models.Manager()

    class Meta:
        app_label = "replicas"
