"""The process and its HTTP face: command line, settings, launcher, plugin, routes, metrics."""
