"""What is kept for good: flags, runs, adapters, leases. Start reading at flags.py."""
