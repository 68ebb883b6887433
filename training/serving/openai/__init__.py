"""The OpenAI-compatible face of the server: models, chat completions, completions."""
