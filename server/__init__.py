"""HTTP: thin routes over wire/. JSON stays at this edge."""
