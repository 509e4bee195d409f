"""Who runs when: ids in, ids out. It knows no text."""
