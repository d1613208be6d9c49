"""Who may call what: keys, rate limits, other sites' pages, sessions."""
