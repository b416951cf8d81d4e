"""Numeric operations: one meaning, several implementations. Imports no other room."""
