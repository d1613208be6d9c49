"""Public benchmark sets sent through running servers, over their public HTTP API only."""
