"""Make the tables and the registers of a run anew: ``fill ENGINE URL``."""

from __future__ import annotations

import sys

from tests.faults.replicas.project import configure
from tests.faults.replicas.servers import REGISTERS


def main() -> None:
    configure(sys.argv[1], {"primary": sys.argv[2]})
    from django.core.management import call_command

    from tests.faults.replicas.models import Line, Register

    call_command("migrate", run_syncdb=True, verbosity=0)
    Line.objects.all().delete()
    Register.objects.all().delete()
    Register.objects.bulk_create([Register(id=n) for n in range(REGISTERS)])


if __name__ == "__main__":
    main()
