"""Public benchmark sets sent through a running server, over its public HTTP API only."""
