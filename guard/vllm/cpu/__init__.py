"""What only vLLM's CPU backend needs; installed by `setback serve` on a CPU."""
