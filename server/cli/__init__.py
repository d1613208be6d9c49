"""The command `setback`, one file a command."""
