"""`manage.py fleet`: one module for each of its subcommands."""
