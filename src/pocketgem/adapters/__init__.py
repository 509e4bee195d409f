"""Changes of a model's weights that come in files of their own: read, checked against the base, proved to act."""
