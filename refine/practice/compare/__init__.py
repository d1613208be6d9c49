"""The paper's comparison of methods on the practice model, trained from the same flags.

flags.py draws the flags, methods.py defines each method's examples, cells.py trains and stores each
result, figures.py measures, table.py prints. It needs no server: the model runs in transformers.
"""
