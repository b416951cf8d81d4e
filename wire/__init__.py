"""The language of the house and its doors; everyone may import it, it imports no room."""
