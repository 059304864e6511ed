"""Changes of model rows, sent to the groups of those who watch them."""
