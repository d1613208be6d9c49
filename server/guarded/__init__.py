"""A guarded request on its way through HTTP: what it asks, and what its response says."""
