"""Programs that speak to OpenAI-compatible servers, unmodified, against ours with a model that follows a script."""
