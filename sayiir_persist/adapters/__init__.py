"""One module or package for each store; none imports another."""
