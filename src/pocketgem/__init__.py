"""pocketgem: Gemma on the device you own."""
