"""Who may call the server, and where the server may send requests."""
