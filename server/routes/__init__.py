"""Our own HTTP routes, and which of vLLM's stay open."""
