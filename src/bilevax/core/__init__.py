"""Values that travel between the rooms: codes, errors, records, configuration, pytree arithmetic, files."""
