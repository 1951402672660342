"""Text-to-text formats of downstream tasks: a record in, the example that T5 makes of it out."""
