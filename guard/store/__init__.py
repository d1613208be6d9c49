"""The flag store: what was flagged, kept for good. Start reading at flags.py."""
