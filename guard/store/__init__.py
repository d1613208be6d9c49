"""The database: flags, runs, adapters, keys, leases. Start reading at flags.py."""
