"""The command `setback`, with a file for each command."""
