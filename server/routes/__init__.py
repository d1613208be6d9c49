"""Our own routes, and which of vLLM's stay open."""
