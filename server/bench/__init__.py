"""`setback bench`: what the guard costs beside bare vLLM."""
