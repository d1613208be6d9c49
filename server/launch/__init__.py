"""Starting a server: the model, the checks before vLLM starts, and the processes."""
