"""All that reaches into vLLM's internals. private.py lists every private piece."""
