"""Text for models and for people: chat templates, prompt templates, Markdown. What others wrote is made harmless."""
