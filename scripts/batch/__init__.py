"""Many images to rows: what is read, who answers, and what is written."""
