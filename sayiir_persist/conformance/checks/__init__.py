"""The checks, one module for each group; every module here is loaded by the registry."""
