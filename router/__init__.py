"""Where each request runs, and why: gates, checks, cascade."""
