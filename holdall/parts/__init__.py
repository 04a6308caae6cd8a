"""Plain functions that three or more methods share, with the strongest tests in the repository."""
