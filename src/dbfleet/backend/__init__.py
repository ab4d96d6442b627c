"""``ENGINE = "dbfleet.backend"``: the thin layer between Django and the fleet."""
