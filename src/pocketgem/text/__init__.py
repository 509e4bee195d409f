"""Strings and ids; never a tensor."""
