"""The paper's comparison on the practice model: what to learn from the same flags, from how many.

flags.py draws the flags, methods.py says what each method learns from them, cells.py trains and
keeps each result, figures.py measures, table.py prints. No server: it runs in transformers.
"""
