"""`setback bench`: the cost of the guard compared with bare vLLM."""
