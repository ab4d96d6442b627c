"""A music store on a fleet of databases: the project that ``make demo`` runs."""
