"""What dbfleet tells about itself; importable by every room, imports none."""
