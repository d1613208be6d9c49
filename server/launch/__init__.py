"""Starting a server: the model it serves, the checks before vLLM starts, and its processes."""
