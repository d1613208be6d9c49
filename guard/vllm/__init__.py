"""All that reaches into vLLM's private parts; each file names them and the version checked."""
