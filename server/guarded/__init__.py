"""A guarded request in HTTP: reading it, and annotating its response."""
