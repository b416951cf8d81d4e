"""Jobs: recurring pieces of work with a definition of done."""
