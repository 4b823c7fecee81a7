"""A checkpoint behind HTTP: OpenAI's API for clients, and a page that shows a prompt being denoised."""
