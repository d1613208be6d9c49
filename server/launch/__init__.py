"""Starting a server: which model it serves and what is checked before vLLM starts."""
